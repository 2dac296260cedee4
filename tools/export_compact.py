#!/usr/bin/env python3
"""Export a trained pruning run: compact checkpoint, unit file, compact config and report."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.export_compact import main

if __name__ == '__main__':
    main()
