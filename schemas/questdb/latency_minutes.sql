-- latency_minutes: How many latencies of a service and operation fell into each log bucket in each minute.
-- A bucket spans a ratio of 1.02 (40000 + floor(ln(v)/ln(1.02)); negative values mirrored below 0; zero is bucket 0), so
-- that a percentile over any duration is a sum over buckets, within 1 %. Kept up by the server once a minute.
-- Never use DROP PARTITION on its base table: that stops the view. `ringlog retention run` goes by TTL instead.
CREATE MATERIALIZED VIEW IF NOT EXISTS latency_minutes WITH BASE latencies REFRESH EVERY 1m AS (
    SELECT
        timestamp,
        service,
        operation,
        CASE
            WHEN latency_us > 0 THEN 40000 + floor(ln(latency_us) / ln(1.02))::int
            WHEN latency_us < 0 THEN -40000 - floor(ln(-latency_us) / ln(1.02))::int
            ELSE 0
        END AS bucket,
        count(latency_us) AS samples
    FROM latencies
    SAMPLE BY 1m
) PARTITION BY DAY;
