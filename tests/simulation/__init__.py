"""The simulation: rings, lanes, spool, ledger and writer in one process, with a crash possible at every step."""
