"""Whole histories of an instance, reboots among them, judged by an oracle and held against the ledger."""
