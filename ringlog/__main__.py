"""`python -m ringlog` is the `ringlog` command."""

from ringlog.cli import main

main()
