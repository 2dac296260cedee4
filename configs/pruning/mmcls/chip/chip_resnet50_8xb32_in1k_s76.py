# CHIP (arXiv 2110.13981) on ResNet-50: 76.7% of the published FLOPs are removed.
_base_ = './chip_resnet50_8xb32_in1k_s44.py'
model = dict(target_pruning_ratio='[0.]+[0.5]*3+[0.6]*16')
