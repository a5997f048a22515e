"""What people would use instead of ringlog, side by side: the same trade, made usable in another process."""
