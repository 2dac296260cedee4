"""Commands of `tools/datasets`."""
