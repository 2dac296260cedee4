"""What needs the Runner: starting processes, hooks and loops."""
