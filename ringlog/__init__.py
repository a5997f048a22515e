"""ringlog: records from latency-sensitive processes into QuestDB, exactly once, without making them wait."""
