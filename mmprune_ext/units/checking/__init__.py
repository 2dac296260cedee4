"""The check by execution: a slimmed model against the dense one in which the removed channels are silent."""
