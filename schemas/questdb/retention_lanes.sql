-- retention_lanes: Which records retention took: ranges of seq for each day and lane, written before the day goes.
-- `ringlog audit` excuses a missing row only by these. Never cut by retention itself: about 60 bytes a lane and day.
CREATE TABLE IF NOT EXISTS "retention_lanes" (
    "timestamp" TIMESTAMP,                 -- the run's number, as in retention_audit
    "table_name" SYMBOL CAPACITY 64 CACHE,
    "day" TIMESTAMP,                       -- the day that went
    "lane" LONG,                           -- whose records, of whichever host
    "first_seq" LONG,
    "last_seq" LONG,                       -- included
    "rows" LONG                            -- how many records of that range; all of it where it is as long as that
) TIMESTAMP("timestamp") PARTITION BY MONTH WAL
DEDUP UPSERT KEYS("timestamp", "table_name", "day", "lane", "first_seq");
