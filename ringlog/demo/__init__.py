"""The demo: a paper-trading session over a recorded or generated market, with every part of ringlog for real."""
