-- latencies: One latency of one operation of one service a row.
-- (timestamp, lane, seq) is a record's identity: a record that is sent again replaces itself, so each is stored once.
-- Applied and verified by `ringlog migrate`; columns that only the server has are left alone.
CREATE TABLE IF NOT EXISTS "latencies" (
    "timestamp" TIMESTAMP,                   -- when it happened, UTC, microseconds
    "lane" LONG,                             -- which producer's lane it came through: random, new for every claim
    "seq" LONG,                              -- its number in that lane, from 0
    "service" SYMBOL CAPACITY 1024 CACHE,    -- who was measured
    "operation" SYMBOL CAPACITY 1024 CACHE,  -- what it did
    "latency_us" DOUBLE                      -- microseconds; negative where clocks disagree
) TIMESTAMP("timestamp") PARTITION BY DAY WAL
DEDUP UPSERT KEYS("timestamp", "lane", "seq");
