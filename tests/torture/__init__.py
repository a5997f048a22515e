"""The torture: producers, a supervised writer and QuestDB under random faults, judged by an independent oracle."""
