"""What a config says: reading it, checking it, completing it."""
