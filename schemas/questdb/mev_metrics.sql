-- mev_metrics: One trade's exposure to MEV (front-running, sandwiches) a row.
-- (timestamp, lane, seq) is a record's identity: a record that is sent again replaces itself, so each is stored once.
-- Applied and verified by `ringlog migrate`; columns that only the server has are left alone.
CREATE TABLE IF NOT EXISTS "mev_metrics" (
    "timestamp" TIMESTAMP,                    -- when it happened, UTC, microseconds
    "lane" LONG,                              -- which producer's lane it came through: random, new for every claim
    "seq" LONG,                               -- its number in that lane, from 0
    "token_pair" SYMBOL CAPACITY 1024 CACHE,  -- base/quote
    "trade_size" DOUBLE,                      -- in base token units
    "sandwich_probability" DOUBLE,            -- 0 to 1
    "estimated_loss_bps" DOUBLE,              -- basis points, before the trade
    "actual_loss_bps" DOUBLE,                 -- basis points; NULL: not known
    "protection_used" BOOLEAN,                -- sent through a protected route
    "priority_fee_lamports" LONG,             -- lamports
    "avoided" BOOLEAN                         -- no loss, though one was likely
) TIMESTAMP("timestamp") PARTITION BY DAY WAL
DEDUP UPSERT KEYS("timestamp", "lane", "seq");
