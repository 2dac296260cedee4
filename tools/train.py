#!/usr/bin/env python3
"""Train, prune-train or fine-tune by a config with mmengine's Runner."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.train import main

if __name__ == '__main__':
    main()
