-- mev_minutes: Counts and sums of each minute's trades with and without MEV protection. Kept up once a minute.
-- Never use DROP PARTITION on its base table: that stops the view. `ringlog retention run` goes by TTL instead.
CREATE MATERIALIZED VIEW IF NOT EXISTS mev_minutes WITH BASE mev_metrics REFRESH EVERY 1m AS (
    SELECT
        timestamp,
        protection_used,
        count() AS trades,
        sum(CASE WHEN avoided THEN 1 ELSE 0 END) AS avoided,
        count(estimated_loss_bps) AS estimated_samples,
        sum(estimated_loss_bps) AS estimated_loss_bps_sum,
        count(actual_loss_bps) AS actual_samples,
        sum(actual_loss_bps) AS actual_loss_bps_sum,
        sum(priority_fee_lamports) AS priority_fee_lamports_sum
    FROM mev_metrics
    SAMPLE BY 1m
) PARTITION BY DAY;
