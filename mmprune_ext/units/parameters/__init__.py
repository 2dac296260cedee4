"""Parameters of layers: taking positions of them, and weights that are computed from others before each pass."""
