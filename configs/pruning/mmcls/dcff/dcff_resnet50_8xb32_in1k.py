# DCFF (arXiv 2107.06916) of ResNet-50 on ImageNet, from scratch: 15.16M of 25.56M parameters stay.
# Rates: the stem, then both inner convolutions and the output of each block. Batch 256 on 8 GPUs.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../../../_base_/pruning/dcff.py']
model = dict(
    _base_.pop('method'),
    architecture=_base_.pop('model'),
    mutator=dict(type='mmprune_ext.DCFFMutator', demo_inputs=(224, 224)),
    target_pruning_ratio='[0.0]+[0.35,0.4,0.1]*10+[0.3,0.3,0.1]*6')

# The published run: lr 0.1, a tenth of it at epochs 30, 60 and 90, and 20 epochs more than the dense
# network has.
train_cfg = dict(max_epochs=120)
randomness = dict(seed=0)
# Writes the compact model into compact/ of the work folder when training has ended.
custom_hooks = [dict(type='mmprune_ext.ExportHook')]
