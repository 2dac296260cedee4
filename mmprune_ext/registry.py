"""Registries of mmprune_ext: children of mmengine's, scope `mmprune_ext`.

A config names what is registered here as `mmprune_ext.<Name>`. The first such name that a registry
meets makes mmengine import this module, and the registry then imports its `locations`; a config
needs no import statement of its own.
"""
from mmengine import registry as root
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry

SCOPE = 'mmprune_ext'

# mmengine reads `mmprune_ext::...`, the name of a config that this package ships, for the packages of its table only.
MODULE2PACKAGE.setdefault(SCOPE, SCOPE)


def _child(parent: Registry, *packages: str) -> Registry:
    """Return a child of `parent` that imports `mmprune_ext.<package>` when it is first asked."""
    return Registry(parent.name, parent=parent, scope=SCOPE,
                    locations=[f'{SCOPE}.{package}' for package in packages])


# Backbones, layers that pruning puts in, mutators, algorithms, the compact model, a student beside teachers.
MODELS = _child(root.MODELS, 'models', 'ops', 'mutators', 'algorithms', 'compact', 'distillation')
DATASETS = _child(root.DATASETS, 'datasets')
TRANSFORMS = _child(root.TRANSFORMS, 'datasets')
RUNNERS = _child(root.RUNNERS, 'engine')
LOOPS = _child(root.LOOPS, 'engine')
HOOKS = _child(root.HOOKS, 'engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, 'engine')
PARAM_SCHEDULERS = _child(root.PARAM_SCHEDULERS, 'engine')
LOG_PROCESSORS = _child(root.LOG_PROCESSORS, 'engine')
METRICS = _child(root.METRICS, 'engine')
VISUALIZERS = _child(root.VISUALIZERS, 'engine')
