# CHIP (arXiv 2110.13981) on ResNet-50: 62.8% of the published FLOPs are removed.
_base_ = './chip_resnet50_8xb32_in1k_s44.py'
model = dict(target_pruning_ratio='[0.]+[0.25]*3+[0.5]*16')
