-- positions: A trader's holding of one token at one moment a row; the newest row of (trader_id, mode, token) is the holding.
-- (timestamp, lane, seq) is a record's identity: a record that is sent again replaces itself, so each is stored once.
-- Applied and verified by `ringlog migrate`; columns that only the server has are left alone.
CREATE TABLE IF NOT EXISTS "positions" (
    "timestamp" TIMESTAMP,                   -- when it happened, UTC, microseconds
    "lane" LONG,                             -- which producer's lane it came through: random, new for every claim
    "seq" LONG,                              -- its number in that lane, from 0
    "trader_id" SYMBOL CAPACITY 1024 CACHE,  -- whose holding it is
    "mode" SYMBOL CAPACITY 16 CACHE,         -- paper or live
    "token" SYMBOL CAPACITY 1024 CACHE,      -- mint address of the token held
    "quantity" DOUBLE,                       -- in token units; negative: short
    "average_entry_price" DOUBLE,            -- quote units per token
    "mark_price" DOUBLE,                     -- quote units per token, at this moment
    "realized_pnl" DOUBLE,                   -- quote units
    "unrealized_pnl" DOUBLE                  -- quote units
) TIMESTAMP("timestamp") PARTITION BY DAY WAL
DEDUP UPSERT KEYS("timestamp", "lane", "seq");
