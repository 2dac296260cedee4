# ChipNet (arXiv 2102.07156) of a network that one of the task libraries has trained. A config names the network's own
# config beside this file; the compact model is fine-tuned by the settings of that.
# The budget is the share that remains. Another share: --cfg-options model.budget.flops=0.25 (0.125, 0.0625). Another
# kind (params, channels, volume): --cfg-options model.budget.flops=None model.budget.params=0.5
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
method = dict(type='mmprune_ext.ChipNet', budget=dict(flops=0.5))

# One job of two parts: the search, whose settings `search` holds (its keys replace the config's own of that name,
# whole), then training of the compact model by the config's own settings.
runner_type = 'mmprune_ext.SearchRunner'
# Published are searches on CIFAR and Tiny ImageNet: 20 epochs at lr 1e-3, of 1,400 iterations on CIFAR. The gates keep
# that; a tenth of the lr for the weights is ours: steps of 1e-3 are as large as the weights of wide layers.
search = dict(
    train_cfg=dict(by_epoch=True, max_epochs=20, val_interval=1),
    optim_wrapper=dict(
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-3),
        paramwise_cfg=dict(custom_keys={'channel_gates': dict(lr_mult=10., decay_mult=0.)})),
    param_scheduler=[])
