"""The SQL that a person reads and runs, one folder a database; installed as `ringlog.schemas`."""
