"""Tracing: a model is run once with channel labels beside its values."""
