#!/usr/bin/env python3
"""The whole way on data made on the spot: train, prune, fine-tune, export, test, draw."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.demo import main

if __name__ == '__main__':
    main()
