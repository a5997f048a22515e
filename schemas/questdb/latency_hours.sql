-- latency_hours: The rows of latency_minutes added up by the hour, so that a percentile over a day reads 2 % of its rows.
-- A view over a view: kept up by the server once a minute.
CREATE MATERIALIZED VIEW IF NOT EXISTS latency_hours WITH BASE latency_minutes REFRESH EVERY 1m AS (
    SELECT timestamp, service, operation, bucket, sum(samples) AS samples FROM latency_minutes SAMPLE BY 1h
) PARTITION BY DAY;
