#!/usr/bin/env python3
"""Prune a trained model: config, checkpoint, method and target in; compact model and report out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.prune import main

if __name__ == '__main__':
    main()
