# Training from scratch as in the L1 filter pruning experiments: 300 epochs, lr / 10 at 150 and 225; but
# lr 0.1 is reached within two epochs. From the first iteration it is too large for deep networks:
# ResNet-56 was still at chance after an epoch (He et al., arXiv 1512.03385, section 4.2, on ResNet-110).
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='MultiStepLR', by_epoch=True, milestones=[150, 225], gamma=0.1),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=5)
val_cfg = dict()
test_cfg = dict()
# lr belongs to this batch size over all GPUs; mmengine scales it for others with enable=True.
auto_scale_lr = dict(base_batch_size=128)
