"""What ``deploy.json`` says: the inputs of a deployed model, its outputs, and its classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS
from torch import Tensor, nn

from mmprune_ext.deploy.passes import Plan

SCHEMA = 1
INPUT = 'images'


def describe(plan: Plan, model: nn.Module, config: Mapping[str, Any], meta: Mapping[str, Any],
             shape: Sequence[int], dynamic: Sequence[str]) -> dict[str, Any]:
    """Return the description of a deployed model, as :mod:`mmprune_ext.deploy.decoding` reads it.

    Args:
        plan: What is exported.
        model: The model.
        config: Its config.
        meta: Of its checkpoint.
        shape: ``(N, C, H, W)`` of its input.
        dynamic: What may differ from that: ``batch``, ``size``.
    """
    shown = ['batch' if 'batch' in dynamic else shape[0], shape[1],
             *(('height', 'width') if 'size' in dynamic else shape[2:])]
    return {'schema': SCHEMA, 'task': plan.task, 'model': type(model).__name__,
            'input': {'name': INPUT, 'shape': shown, 'size': list(shape[2:]), 'dynamic_size': 'size' in dynamic,
                      **_values(model, shape[1]), **_resizing(config)},
            'outputs': [{'name': name, 'is': meaning} for name, meaning in plan.outputs.items()],
            'decoding': dict(plan.decoding), 'classes': class_names(config, meta)}


def _values(model: nn.Module, channels: int) -> dict[str, Any]:
    """Return what the data preprocessor makes of pixels; the libraries name it in three ways."""
    preprocessor = getattr(model, 'data_preprocessor', None)

    def first(*names: str, default: Any) -> Any:
        values = (getattr(preprocessor, name, None) for name in names)
        return next((value for value in values if value is not None), default)

    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    in_rgb = any(bool(getattr(preprocessor, name, False))
                 for name in ('to_rgb', 'channel_conversion', '_channel_conversion'))
    divisor = (getattr(preprocessor, 'test_cfg', None) or {}).get('size_divisor')
    return {'channels': 'rgb' if in_rgb else 'bgr',
            'mean': mean.flatten().tolist() if isinstance(mean, Tensor) else [0.] * channels,
            'std': std.flatten().tolist() if isinstance(std, Tensor) else [1.] * channels,
            'pad_divisor': int(divisor or first('pad_size_divisor', default=1)),
            'pad_value': float(first('pad_value', 'pad_val', default=0))}


def _resizing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the test pipeline brings an image to the size of the input."""
    steps = {str(step.get('type', '')).rpartition('.')[2]: step for step in _test_pipeline(config)}
    if 'TopdownAffine' in steps:
        return {'resize': 'person', 'padding': float((steps.get('GetBBoxCenterScale') or {}).get('padding', 1.25))}
    if 'ResizeEdge' in steps and 'CenterCrop' in steps:
        return {'resize': 'edge', 'edge': int(steps['ResizeEdge']['scale'])}
    return {'resize': 'fit' if (steps.get('Resize') or {}).get('keep_ratio') else 'stretch'}


def _datasets(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for split in ('test', 'val', 'train'):
        dataset = (config.get(f'{split}_dataloader') or {}).get('dataset') or {}
        while isinstance(dataset.get('dataset'), Mapping):
            dataset = dataset['dataset']
        if dataset:
            yield dataset


def _test_pipeline(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(next(_datasets(config), {}).get('pipeline') or [])


def class_names(config: Mapping[str, Any], meta: Mapping[str, Any]) -> list[str]:
    """Return the names of a model's classes: of its checkpoint, of its config, or of its data set; empty if unknown."""
    stored = meta.get('dataset_meta') or {}
    for names in (stored.get('classes'), stored.get('CLASSES'), meta.get('CLASSES'),
                  *((dataset.get('metainfo') or {}).get('classes') for dataset in _datasets(config))):
        if isinstance(names, Sequence) and not isinstance(names, str):
            return [str(name) for name in names]
    for dataset in _datasets(config):
        kind = dataset.get('type')
        try:
            with DATASETS.switch_scope_and_registry(None) as registry:  # of the default scope
                kind = registry.get(kind) if isinstance(kind, str) else kind
        except RuntimeError:
            continue
        names = (getattr(kind, 'METAINFO', None) or {}).get('classes')
        if names:
            return [str(name) for name in names]
    return []
