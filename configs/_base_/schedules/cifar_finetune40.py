# Fine-tuning of a pruned network as in the L1 filter pruning experiments: 40 epochs, lr / 10 at 20
# and 30.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[20, 30], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# lr belongs to this batch size over all GPUs; mmengine scales it for others with enable=True.
auto_scale_lr = dict(base_batch_size=128)
