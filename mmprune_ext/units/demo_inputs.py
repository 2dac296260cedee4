"""Demo inputs: forward passes that reach every layer that training and inference use.

What a model is run on while it is traced can be given as a tensor, as an image size, as keyword
arguments, or as a function of the model. Without it, it is derived from the model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.errors import PruningError
from mmprune_ext.units.task_samples import data_samples, library_of, two_stage_pass

Forward = Callable[[nn.Module], Any]
DemoInputs = Tensor | Mapping[str, Any] | Sequence[int] | Forward | None
DEFAULT_SIZE = 224


def set_training(model: nn.Module, mode: bool) -> None:
    """Set the train or eval flag of every module.

    Not ``model.train(mode)``: backbones override it to freeze stages again.
    """
    for module in model.modules():
        module.training = mode


def is_openmmlab(model: nn.Module) -> bool:
    """Whether the model's forward takes ``mode`` as OpenMMLab's models do."""
    return 'mode' in inspect.signature(model.forward).parameters


def image_shape(model: nn.Module, size: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the shape ``(C, H, W)`` of one image for the model; ``(C,)`` for a linear first layer.

    Args:
        model: The model.
        size: ``(H, W)`` or ``(C, H, W)``; ``None`` takes the backbone's ``img_size``, else 224.
    """
    if size is not None and len(size) == 3:
        return tuple(int(s) for s in size)
    channels = 3
    for module in [] if is_openmmlab(model) else model.modules():
        if isinstance(module, nn.Linear) and size is None:
            return (module.in_features,)
        if isinstance(module, nn.modules.conv._ConvNd):
            channels = module.in_channels
            break
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if isinstance(mean, Tensor):
        channels = len(mean)
    if size is None:
        size = getattr(getattr(model, 'backbone', model), 'img_size', None) or DEFAULT_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return (channels, int(height), int(width))


def eval_pass(model: nn.Module, demo_inputs: DemoInputs) -> Forward:
    """Return the forward pass in eval mode that is traced and compared.

    Raises:
        PruningError: If ``demo_inputs`` is of an unknown kind.
    """
    if callable(demo_inputs) and not isinstance(demo_inputs, (Tensor, nn.Module)):
        return demo_inputs
    if isinstance(demo_inputs, Mapping):
        return lambda m: m(**demo_inputs)
    if isinstance(demo_inputs, Tensor):
        images = demo_inputs
    elif demo_inputs is None or (isinstance(demo_inputs, Sequence)
                                 and all(isinstance(s, int) for s in demo_inputs)
                                 and len(demo_inputs) in (2, 3)):
        images = torch.randn(1, *image_shape(model, demo_inputs))
    else:
        raise PruningError(
            'demo_inputs should be a tensor (N, C, H, W), a size (H, W) or (C, H, W), a dict of '
            f'keyword arguments or a function of the model, but got {demo_inputs!r}')
    return _task_pass(model, images, 'tensor') if is_openmmlab(model) else lambda m: m(images)


def _task_pass(model: nn.Module, images: Tensor, mode: str) -> Forward:
    samples = data_samples(model, images)
    if mode == 'tensor' and hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
        return two_stage_pass(images, samples)
    if mode == 'tensor' and library_of(model) == 'mmseg' and hasattr(model, 'num_stages'):
        mode = 'predict'  # a cascade of heads has no forward without post-processing
    # Models change samples in place (predictions, boxes without masks): each run gets its own.
    return lambda m: m(images, copy.deepcopy(samples), mode=mode)


def training_passes(model: nn.Module, demo_inputs: DemoInputs) -> list[Forward]:
    """Return further passes, in train mode, that reach layers used in training only."""
    if demo_inputs is not None and not isinstance(demo_inputs, (Tensor, Sequence)):
        return [demo_inputs] if callable(demo_inputs) else []
    if isinstance(demo_inputs, Tensor):
        shape = tuple(demo_inputs.shape[1:])
    else:
        shape = image_shape(model, demo_inputs)
    images = torch.randn(2, *shape)
    if not is_openmmlab(model):
        return [lambda m: m(images)]
    passes = [_task_pass(model, images, 'tensor')]
    if library_of(model) is not None:
        passes.append(_task_pass(model, images, 'loss'))
    return passes


def image_size_from_config(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the ``(H, W)`` of the images that a config feeds its model, ``None`` if unclear.

    The last transform of the test pipeline, else of the training pipeline, that fixes a size.
    """
    for split in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = (config.get(split) or {}).get('dataset') or {}
        while 'dataset' in dataset and 'pipeline' not in dataset:
            dataset = dataset['dataset']
        for transform in reversed(dataset.get('pipeline') or []):
            size = _fixed_size(transform)
            if size is not None:
                return size
    return None


def tracing_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the ``(H, W)`` to trace the model of a config on, ``None`` if unclear.

    Detectors and segmentors treat every place alike, so that channels flow the same way in a smaller
    image: sides are reduced to at most 256, in multiples of 32. Others get the size of their data.
    """
    size = image_size_from_config(config)
    if size is None or config.get('default_scope') not in ('mmdet', 'mmseg'):
        return size
    scale = min(1.0, 256 / max(size))
    height, width = (max(32, round(side * scale / 32) * 32) for side in size)
    return height, width


def _fixed_size(transform: Mapping[str, Any]) -> tuple[int, int] | None:
    name = str(transform.get('type', '')).rsplit('.', 1)[-1]
    if name in ('CenterCrop', 'RandomCrop', 'EfficientNetCenterCrop'):
        size = transform.get('crop_size')
    elif name in ('RandomResizedCrop', 'Resize', 'Pad'):
        size = transform.get('size' if name == 'Pad' else 'scale', transform.get('crop_size'))
    else:
        return None
    if isinstance(size, int):
        return (size, size)
    if not isinstance(size, Sequence) or len(size) != 2 or not all(
            isinstance(s, int) and s > 0 for s in size):
        return None
    # mmcv's Resize names (width, height), crops name (height, width).
    return (size[1], size[0]) if name == 'Resize' else (size[0], size[1])
