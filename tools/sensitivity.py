#!/usr/bin/env python3
"""Prune each unit of a trained model alone and tell how much worse its metric gets: a file, a table, a picture."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.sensitivity import main

if __name__ == '__main__':
    main()
