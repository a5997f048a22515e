-- trades: One executed trade of a paper or live trader a row.
-- (timestamp, lane, seq) is a record's identity: a record that is sent again replaces itself, so each is stored once.
-- Applied and verified by `ringlog migrate`; columns that only the server has are left alone.
CREATE TABLE IF NOT EXISTS "trades" (
    "timestamp" TIMESTAMP,                     -- when it happened, UTC, microseconds
    "lane" LONG,                               -- which producer's lane it came through: random, new for every claim
    "seq" LONG,                                -- its number in that lane, from 0
    "trader_id" SYMBOL CAPACITY 1024 CACHE,    -- whose trade it is
    "mode" SYMBOL CAPACITY 16 CACHE,           -- paper or live
    "action" SYMBOL CAPACITY 16 CACHE,         -- buy, sell or swap
    "base_token" SYMBOL CAPACITY 1024 CACHE,   -- mint address of the token traded
    "quote_token" SYMBOL CAPACITY 1024 CACHE,  -- mint address of the token paid with
    "base_amount" DOUBLE,                      -- in base token units
    "quote_amount" DOUBLE,                     -- in quote token units
    "executed_price" DOUBLE,                   -- quote units per base unit
    "transaction_fee" LONG,                    -- lamports
    "priority_fee" LONG,                       -- lamports; NULL: none was offered
    "expected_slippage" DOUBLE,                -- fraction of the price, as quoted
    "actual_slippage" DOUBLE,                  -- fraction of the price, as executed
    "mev_status" SYMBOL CAPACITY 16 CACHE,     -- protected, at_risk or impacted
    "mev_protected" BOOLEAN,                   -- sent through a protected route
    "transfer_fees" DOUBLE,                    -- Token-2022 transfer fees in token units; NULL: the token has none
    "tx_signature" VARCHAR,                    -- base58; NULL on paper
    "metadata" VARCHAR                         -- a JSON document, or NULL
) TIMESTAMP("timestamp") PARTITION BY DAY WAL
DEDUP UPSERT KEYS("timestamp", "lane", "seq");
