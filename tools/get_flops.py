#!/usr/bin/env python3
"""Print parameters, multiply-accumulates and FLOPs of a config's model, whole and backbone.

Of a compact config, and of a pruning config whose target tells the widths, dense and compact model
side by side.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.get_flops import main

if __name__ == '__main__':
    main()
