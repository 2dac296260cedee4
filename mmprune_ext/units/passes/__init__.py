"""Passes of models: those that take more than images, decide by scores what comes next, or run code unseen."""
