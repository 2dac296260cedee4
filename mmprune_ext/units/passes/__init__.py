"""Passes of models that take more than images, or decide by their scores what their next layers see."""
