# default_runtime.py for mmseg.
_base_ = 'default_runtime.py'
default_scope = 'mmseg'
default_hooks = dict(checkpoint=dict(save_best='mIoU'))
visualizer = dict(type='SegLocalVisualizer')
