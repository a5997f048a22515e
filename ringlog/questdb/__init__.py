"""QuestDB: its tables, and the sink that writes to them."""
