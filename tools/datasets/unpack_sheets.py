#!/usr/bin/env python3
"""Unpack tiled image sheets with labels.npz to class folders for mmpretrain's CustomDataset.

Example: python tools/datasets/unpack_sheets.py SHEETS data/cifar10 --limit 500
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmprune_ext.cli.commands.datasets.unpack_sheets import main

if __name__ == '__main__':
    main()
