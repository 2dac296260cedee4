# Fine-tuning of the CHIP experiments on CIFAR-10: 200 epochs of batch 256, lr 0.01 along a cosine.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.99, weight_decay=1e-3))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=200, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# lr belongs to this batch size over all GPUs; mmengine scales it for others with enable=True.
auto_scale_lr = dict(base_batch_size=256)
