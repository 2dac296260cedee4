# L1 filter pruning of ResNet-56 (PFEC, arXiv 1608.08710): first convolution of each block,
# 10 / 20 / 30% of stages 1 / 2 / 3, sensitive convolutions left whole. Fine-tunes 40 epochs.
# Needs the weights of the dense network: set checkpoint to a file that fits
# configs/cifar/resnet56_cifar10.py (tools/convert_checkpoint.py makes one of the public weights).
_base_ = [
    '../../../_base_/models/resnet56_cifar.py',
    '../../../_base_/datasets/cifar10_folder.py',
    '../../../_base_/schedules/cifar_finetune40.py',
    '../../../_base_/default_runtime.py',
]
architecture = {{_base_.model}}
checkpoint = 'checkpoints/resnet56_cifar10.pth'
model = dict(
    _delete_=True,
    type='mmprune_ext.L1Norm',
    architecture=architecture,
    checkpoint=checkpoint,
    mutator=dict(type='mmprune_ext.L1Mutator', demo_inputs=(32, 32)),
    target_pruning_ratio={
        'backbone.layer1.*.conv1': 0.1,
        'backbone.layer2.*.conv1': 0.2,
        'backbone.layer3.*.conv1': 0.3,
        'backbone.layer1.7.conv1': 0.0,
        'backbone.layer2.0.conv1': 0.0,
        'backbone.layer3.0.conv1': 0.0,
        'backbone.layer3.8.conv1': 0.0,
    })
