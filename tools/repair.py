#!/usr/bin/env python3
"""Repair a compact model without training, by the dense model that it was pruned from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.repair import main

if __name__ == '__main__':
    main()
