# Training from scratch as in the DCFF experiments: 300 epochs, lr / 10 at 150 and 225, batch 256.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[150, 225], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=5)
val_cfg = dict()
test_cfg = dict()
# lr belongs to this batch size over all GPUs; mmengine scales it for others with enable=True.
auto_scale_lr = dict(base_batch_size=256)
