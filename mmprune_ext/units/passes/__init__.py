"""Passes of models that take more than images, decide by their scores what their next layers see, or run code unseen."""
