#!/usr/bin/env python3
"""Test a model by a config: a dense one, a compact one, or a pruning run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.test import main

if __name__ == '__main__':
    main()
