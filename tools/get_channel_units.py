#!/usr/bin/env python3
"""Show a model's channel units, or write them as JSON."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.get_channel_units import main

if __name__ == '__main__':
    main()
