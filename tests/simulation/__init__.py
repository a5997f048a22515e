"""The simulation: ring, lanes, spool, ledger and writer in one process, with a crash possible at every step."""
