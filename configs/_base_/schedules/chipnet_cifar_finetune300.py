# Fine-tuning of the ChipNet experiments on CIFAR, by the defaults of the published code: 300 epochs of batch 128, lr 0.05
# halved every 30 epochs, the task loss alone.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-3))
param_scheduler = dict(type='StepLR', by_epoch=True, step_size=30, gamma=0.5)
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# lr belongs to this batch size over all GPUs; mmengine scales it for others with enable=True.
auto_scale_lr = dict(base_batch_size=128)
