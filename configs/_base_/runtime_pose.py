# default_runtime.py for mmpose.
_base_ = 'default_runtime.py'
default_scope = 'mmpose'
default_hooks = dict(
    checkpoint=dict(save_best='coco/AP'),
    visualization=dict(type='PoseVisualizationHook'))
visualizer = dict(type='PoseLocalVisualizer')
