#!/usr/bin/env python3
"""Draw scenes of shapes and stick figures with ground truth for all four tasks.

Example: python tools/datasets/draw_scenes.py data/scenes
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmprune_ext.cli.commands.datasets.draw_scenes import main

if __name__ == '__main__':
    main()
