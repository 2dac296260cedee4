"""Models in other runtimes: what of a model is exported, to what, and how its outputs are read there."""
