#!/usr/bin/env python3
"""Convert a public CIFAR ResNet checkpoint for the configs of this project.

Example: python tools/convert_checkpoint.py resnet56.th resnet56_cifar10.pth --model resnet56
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.convert_checkpoint import main

if __name__ == '__main__':
    main()
