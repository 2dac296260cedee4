# ResNet-110 after five rounds of pruning, taught by the networks of rounds 1 to 5 together. The rounds are those of
# l1_resnet110_cifar10.py, run with --rounds 5; their compact models lie in the folder of that run.
_base_ = ['../../../_base_/models/resnet110_cifar.py', '../../../_base_/pruning/distill_cifar10.py']
model = dict(
    _base_.pop('method'),
    student=dict(
        _base_.pop('model'), type='mmprune_ext.CompactModel', architecture='ImageClassifier',
        units='work_dirs/l1_resnet110/round_5/compact/units.json',
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/l1_resnet110/round_5/compact/compact.pth')),
    teachers=[
        dict(config=f'work_dirs/l1_resnet110/round_{number}/compact/compact_config.py') for number in (1, 2, 3, 4, 5)])
