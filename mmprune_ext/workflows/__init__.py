"""What a command does: a config in, files out."""
