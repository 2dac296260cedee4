#!/usr/bin/env python3
"""Score a trained model's channels and write the scores to a file, for tools/prune.py --scores."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.score import main

if __name__ == '__main__':
    main()
