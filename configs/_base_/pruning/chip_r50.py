# CHIP (arXiv 2110.13981) of a ResNet-50, alone or as a backbone. A config names the task's own config beside this file.
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
method = dict(
    type='mmprune_ext.CHIP',
    # The stem, the outputs of stages 1 to 3, the two inner convolutions of each block: 44.8% of the FLOPs on ImageNet.
    target_pruning_ratio='[0.]+[0.1]*3+[0.35]*16')
