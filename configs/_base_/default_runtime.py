# Classification with mmpretrain; names of this package carry the prefix mmprune_ext.
default_scope = 'mmpretrain'
# Only a check, early and with a clear message, that the package can be imported.
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2,
                    save_best='accuracy/top1', rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # Draws nothing until tools/test.py --show-dir switches it on.
    visualization=dict(type='VisualizationHook'),
)
# Random numbers are a function of progress, so that a resumed run repeats an uninterrupted one
# (docs/getting_started.md says when).
custom_hooks = [dict(type='mmprune_ext.EpochSeedHook')]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_level = 'INFO'
load_from = None
resume = False
# A fixed seed, without which no run repeats another.
randomness = dict(seed=0)
