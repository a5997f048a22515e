"""Lanes: segments in shared memory, who owns them, and the budget they are made within."""
