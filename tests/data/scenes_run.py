# What the short runs on drawn scenes share: one epoch of a few iterations.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = []
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=10)
val_cfg = dict()
test_cfg = dict()
