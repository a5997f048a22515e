-- retention_audit: What retention did: a row for each partition that went, and one for each table and run.
-- Never cut by retention itself: the cuts it holds say which late records count as expired.
CREATE TABLE IF NOT EXISTS "retention_audit" (
    "timestamp" TIMESTAMP,                 -- when it was written, the server's clock, UTC
    "run" LONG,                            -- the run's number: the server's microseconds when it began
    "table_name" SYMBOL CAPACITY 64 CACHE,
    "partition_name" VARCHAR,              -- its name (a day); NULL in the row of a whole table
    "outcome" SYMBOL CAPACITY 16 CACHE,    -- planned, dropped, kept; of a table: executed, failed, held, refused
    "cut" TIMESTAMP,                       -- everything before it goes
    "rows" LONG,                           -- rows of the partition, or of all that went
    "bytes" LONG,                          -- their bytes on disk
    "reason" VARCHAR,                      -- of what was kept, failed, held or refused
    "disk_free_bytes_before" LONG,         -- free on the server's disk; NULL where the server is elsewhere
    "disk_free_bytes_after" LONG
) TIMESTAMP("timestamp") PARTITION BY MONTH WAL
DEDUP UPSERT KEYS("timestamp", "run", "table_name", "partition_name", "outcome");
