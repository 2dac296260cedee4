# ChipNet on CIFAR-10 (arXiv 2102.07156): searches 20 epochs, then fine-tunes the compact network for 300.
# A config names a network of configs/_base_/models beside this file, and says by its model what is its own.
# That needs the weights of the dense network: checkpoint is a file that fits the config of the same network in
# configs/cifar (tools/convert_checkpoint.py makes one of the public weights).
# The budget is the share that remains. Another share: --cfg-options model.budget.flops=0.25 (0.125, 0.0625). Another
# kind (params, channels, volume): --cfg-options model.budget.flops=None model.budget.params=0.5
_base_ = ['../datasets/cifar10_folder.py', '../schedules/chipnet_cifar_finetune300.py', '../default_runtime.py']
method = dict(
    type='mmprune_ext.ChipNet',
    mutator=dict(type='mmprune_ext.ChipNetMutator', demo_inputs=(32, 32)),
    budget=dict(flops=0.5))

# One job of two parts: the search, whose settings `search` holds (its keys replace the config's own of that name,
# whole), then training of the compact model by the config's own settings.
runner_type = 'mmprune_ext.SearchRunner'
# By the defaults of the published code: batches of 32, a constant lr.
search = dict(
    train_dataloader=dict(_base_.train_dataloader, batch_size=32),
    train_cfg=dict(by_epoch=True, max_epochs=20, val_interval=1),
    optim_wrapper=dict(
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-3),
        paramwise_cfg=dict(custom_keys={'channel_gates': dict(decay_mult=0.)})),
    param_scheduler=[],
    auto_scale_lr=dict(base_batch_size=32))
