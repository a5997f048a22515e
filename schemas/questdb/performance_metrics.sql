-- performance_metrics: One measured value a row: a latency in microseconds, a throughput in operations/s or an error rate (0..1).
-- (timestamp, lane, seq) is a record's identity: a record that is sent again replaces itself, so each is stored once.
-- Applied and verified by `ringlog migrate`; columns that only the server has are left alone.
CREATE TABLE IF NOT EXISTS "performance_metrics" (
    "timestamp" TIMESTAMP,                   -- when it happened, UTC, microseconds
    "lane" LONG,                             -- which producer's lane it came through: random, new for every claim
    "seq" LONG,                              -- its number in that lane, from 0
    "metric_type" SYMBOL CAPACITY 16 CACHE,  -- latency, throughput or error_rate
    "operation" SYMBOL CAPACITY 1024 CACHE,  -- what was measured
    "value" DOUBLE,                          -- in the metric type's unit
    "percentile" LONG,                       -- 50, 95 or 99; NULL: the value is no percentile
    "tags" VARCHAR                           -- a JSON document, or NULL
) TIMESTAMP("timestamp") PARTITION BY DAY WAL
DEDUP UPSERT KEYS("timestamp", "lane", "seq");
