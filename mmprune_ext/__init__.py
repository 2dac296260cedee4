"""Structured channel pruning for OpenMMLab's task libraries."""
from .version import __version__, check_versions

check_versions()

__all__ = ['__version__']
