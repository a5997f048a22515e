"""Replay: records from a file into lanes, each exactly once however often the replay is killed and resumed.

Nothing is imported here: the demo reads its recordings with `lines` alone.
"""
