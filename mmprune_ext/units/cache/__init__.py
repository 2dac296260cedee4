"""Units that were traced before, on disk: what decides them, and where they are kept."""
