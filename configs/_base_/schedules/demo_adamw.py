# Training from scratch in minutes: AdamW and one cycle of the learning rate.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10))
# Warm-up and decay in one; the peak is eta_max, which tools/demo.py halves for the fine-tuning.
param_scheduler = dict(type='OneCycleLR', eta_max=2e-3, by_epoch=True, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=10)
val_cfg = dict()
test_cfg = dict()
