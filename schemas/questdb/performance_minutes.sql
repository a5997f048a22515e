-- performance_minutes: Count, sum, extremes and last of each minute's values by metric type, operation and percentile.
-- Kept up by the server once a minute. Never use DROP PARTITION on its base table: that stops the view.
CREATE MATERIALIZED VIEW IF NOT EXISTS performance_minutes WITH BASE performance_metrics REFRESH EVERY 1m AS (
    SELECT
        timestamp,
        metric_type,
        operation,
        percentile,
        count(value) AS samples,
        sum(value) AS value_sum,
        min(value) AS value_min,
        max(value) AS value_max,
        last(value) AS value_last
    FROM performance_metrics
    SAMPLE BY 1m
) PARTITION BY DAY;
