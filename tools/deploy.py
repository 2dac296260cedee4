#!/usr/bin/env python3
"""Write a model for another runtime (ONNX Runtime, OpenVINO, torch.export), and check it against PyTorch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.cli.commands.deploy import main

if __name__ == '__main__':
    main()
