"""Demo inputs: forward passes that reach every layer that training and inference use.

What a model is run on while it is traced can be given as a tensor, as an image size, as keyword
arguments, or as a function of the model. Without it, it is derived from the model.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from mmengine.registry import FUNCTIONS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmprune_ext.errors import PruningError
from mmprune_ext.model_config import architecture_of
from mmprune_ext.units.passes import detectors
from mmprune_ext.units.passes.regions import Regions
from mmprune_ext.units.task_samples import ImagePass, data_samples, samples_pass, tensor_pass

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

    An image has the channels that the model's first layer reads.

    Args:
        model: The model.
        size: ``(H, W)`` or ``(C, H, W)``; ``None`` takes the backbone's ``img_size``, else the image
            size of the head's codec, else 224.
    """
    if size is not None and len(size) == 3:
        return tuple(int(s) for s in size)
    stated = 3
    for module in [] if is_openmmlab(model) else model.modules():
        if isinstance(module, nn.Linear) and size is None:
            return (module.in_features,)
        if isinstance(module, nn.modules.conv._ConvNd):
            stated = module.in_channels
            break
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if isinstance(mean, Tensor):
        stated = len(mean)
    if size is None:
        size = _own_size(model)
    height, width = (int(side) for side in ((size, size) if isinstance(size, int) else size))
    return (_channels_read(model, height, width) or stated, height, width)


class _FirstLayer(TorchFunctionMode):
    """End a pass with :class:`_Reached` at its first convolution or linear layer, a functional one too."""

    # By function: the dimension of its input, and that of its weight, that it sums over.
    READ: ClassVar = {F.conv1d: (1, 1), F.conv2d: (1, 1), F.conv3d: (1, 1), F.linear: (-1, 1),
                      F.conv_transpose1d: (1, 0), F.conv_transpose2d: (1, 0), F.conv_transpose3d: (1, 0)}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.READ:
            return func(*args, **kwargs)
        given = {**kwargs, **dict(zip(('input', 'weight', 'bias', 'stride', 'padding', 'dilation', 'groups'), args))}
        of_input, of_weight = self.READ[func]
        groups = given.get('groups', 1) if of_weight == 1 else 1
        raise _Reached(given['input'].shape[of_input], given['weight'].shape[of_weight] * groups)


class _Reached(Exception):
    """The first layer of a pass: the channels that it is given, and those that it reads."""

    def __init__(self, given: int, read: int) -> None:
        super().__init__(given, read)
        self.given, self.read = given, read


def _channels_read(model: nn.Module, height: int, width: int, tried: int = 3) -> int | None:
    """Return the channels of the images that a model's first layer reads, ``None`` if that is not known.

    The model, or its backbone, runs up to this layer. Code before it may have made several channels of one, as a stem
    that turns squares of pixels into channels does.
    """
    reader = getattr(model, 'backbone', None)
    reader = reader if isinstance(reader, nn.Module) else model
    modes = {module: module.training for module in reader.modules()}
    weight = next((p for p in reader.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        set_training(reader, False)
        with torch.no_grad(), _FirstLayer():
            reader(weight.new_zeros(1, tried, height, width))
    except _Reached as first:
        channels, left = divmod(tried * first.read, first.given)
        return None if left else channels
    except Exception:  # the code before its first layer may need something else than an image
        return None
    finally:
        for module, mode in modes.items():
            module.training = mode
    return None


def _own_size(model: nn.Module) -> int | Sequence[int]:
    """Return the image size that a part of the model states, ``(H, W)`` or a side."""
    codec = getattr(getattr(model, 'head', None), 'decoder', None)
    width_height = getattr(codec, 'input_size', None)
    part = getattr(model, 'backbone', model)
    patches, settings = getattr(part, 'patch_embed', None), getattr(part, 'default_cfg', None)
    return (getattr(part, 'img_size', None)
            or getattr(part, 'image_size', None) or detectors.stated_size(model)  # of torchvision
            or getattr(patches, 'img_size', None)
            or isinstance(settings, Mapping) and settings.get('input_size', ())[1:]  # of timm
            or (width_height and width_height[::-1]) or DEFAULT_SIZE)


def eval_pass(model: nn.Module, demo_inputs: DemoInputs, regions: Regions | None = None) -> Forward:
    """Return the forward pass in eval mode that is traced, compared, counted and timed.

    Args:
        model: The model.
        demo_inputs: What it runs on.
        regions: How many regions the second stage of a detector looks at; by default the two of
            the demo ground truth.

    Raises:
        PruningError: If ``demo_inputs`` is of an unknown kind.
    """
    own = own_pass(demo_inputs)
    if own is not None:
        return own
    if isinstance(demo_inputs, Tensor):
        images = demo_inputs
    elif demo_inputs is None or (isinstance(demo_inputs, Sequence)
                                 and all(isinstance(s, int) for s in demo_inputs)
                                 and len(demo_inputs) in (2, 3)):
        images = torch.randn(1, *image_shape(model, demo_inputs))
    else:
        raise PruningError(
            'demo_inputs should be a tensor (N, C, H, W), a size (H, W) or (C, H, W), a dict of '
            f'keyword arguments, a function of the model or dict(type=...) naming one, but got '
            f'{demo_inputs!r}')
    if detectors.is_detector(model):
        return OnImages(images, detectors.eval_pass(regions))
    if not is_openmmlab(model):
        return OnImages(images, lambda m, batch: m(batch))
    return OnImages(images, tensor_pass(model, data_samples(model, images), regions))


@dataclass(frozen=True)
class OnImages:
    """A forward pass on a batch of images.

    Attributes:
        images: ``(N, C, H, W)``.
        run: Takes the model and images of this shape.
    """

    images: Tensor
    run: ImagePass

    def __call__(self, model: nn.Module) -> Any:
        """Run the model once."""
        return self.run(model, self.images)


def own_pass(demo_inputs: DemoInputs) -> Forward | None:
    """Return the pass that a user's function, hook or keyword arguments are, ``None`` for others.

    A hook is ``dict(type=..., **settings)``: a function of mmengine's registry ``FUNCTIONS`` or the
    dotted path of one. It takes the model, and the settings as keyword arguments, and runs it once.

    Raises:
        PruningError: If there is no such function.
    """
    if isinstance(demo_inputs, Mapping):
        if 'type' not in demo_inputs:
            return lambda m: m(**demo_inputs)
        settings = dict(demo_inputs)
        return partial(_hook(settings.pop('type')), **settings)
    is_function = callable(demo_inputs) and not isinstance(demo_inputs, (Tensor, nn.Module))
    return demo_inputs if is_function else None


def _hook(name: str | Forward) -> Forward:
    found, cause = name, ''
    if isinstance(name, str):
        try:
            found = FUNCTIONS.get(name)
        except Exception as error:  # mmengine imports the module, whose code may fail in any way
            found, cause = None, f' ({type(error).__name__}: {error})'
    if found is None:
        raise PruningError(
            f'demo_inputs: there is no function "{name}"{cause}; register it with '
            '@mmengine.registry.FUNCTIONS.register_module() in a module that custom_imports names, '
            'or give its dotted path, package.module.function')
    if not callable(found):
        raise PruningError('demo_inputs: type should name a function of the model, but '
                           f'{name!r} is {found!r}')
    return found


def failure_of(model: nn.Module, error: BaseException) -> str:
    """Return what went wrong while a model ran, and in which of its layers, as one line."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    inside = ''
    for frame, _ in traceback.walk_tb(error.__traceback__):
        inside = paths.get(id(frame.f_locals.get('self')), inside)
    text = ' '.join(str(error).split())[:300]
    return f'{type(error).__name__}: {text}' + (f' (in layer "{inside}")' if inside else '')


def training_passes(model: nn.Module, demo_inputs: DemoInputs) -> list[Forward]:
    """Return further passes, in train mode, that reach layers used in training only."""
    own = own_pass(demo_inputs)
    if own is not None:
        return [own] if callable(demo_inputs) or 'type' in demo_inputs else []
    if isinstance(demo_inputs, Tensor):
        shape = tuple(demo_inputs.shape[1:])
    else:
        shape = image_shape(model, demo_inputs)
    images = torch.randn(2, *shape)
    if detectors.is_detector(model):
        return [OnImages(images, detectors.training_pass)]
    if not is_openmmlab(model):
        return [OnImages(images, lambda m, batch: m(batch))]
    samples = data_samples(model, images)
    passes = [OnImages(images, tensor_pass(model, samples))]
    if samples is not None:
        passes.append(OnImages(images, samples_pass(samples, 'loss')))
    return passes


def image_size_from_config(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the ``(H, W)`` of the images that a config feeds its model, ``None`` if unclear.

    The last transform of the test pipeline, else of the training pipeline, that fixes a size; padded
    as the data preprocessor pads every batch.
    """
    for split in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = (config.get(split) or {}).get('dataset') or {}
        while 'dataset' in dataset and 'pipeline' not in dataset:
            dataset = dataset['dataset']
        for transform in reversed(dataset.get('pipeline') or []):
            size = _fixed_size(transform)
            if size is not None:
                divisor = _pad_divisor(config)
                return tuple(math.ceil(side / divisor) * divisor for side in size)
    return None


def _pad_divisor(config: Mapping[str, Any]) -> int:
    model = architecture_of(config.get('model') or {})
    preprocessor = model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    return int(preprocessor.get('pad_size_divisor') or 1)


def tracing_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the ``(H, W)`` to trace the model of a config on, ``None`` if unclear.

    Detectors and segmentors treat every place alike, so that channels flow the same way in a smaller
    image: sides are reduced to at most 320, in multiples of 32. That is enough for the last layers of
    SSD, and for the 900 queries that DINO takes from all places. Others get the size of their data.
    """
    size = image_size_from_config(config)
    if size is None or config.get('default_scope') not in ('mmdet', 'mmseg') or max(size) <= 320:
        return size
    scale = 320 / max(size)
    height, width = (max(32, round(side * scale / 32) * 32) for side in size)
    return height, width


def tracing_inputs(config: Mapping[str, Any], size: Sequence[int] | None = None) -> DemoInputs:
    """Return what to trace the model of a config on.

    Args:
        config: Its mutator's ``demo_inputs`` come first, then its own, then the size of its data.
        size: A size that the user gives, which replaces the others, but not a hook: a model that
            needs something else than images needs it at every size.
    """
    stated = _stated_inputs(config)
    if isinstance(stated, Mapping) or callable(stated):
        return stated
    return (tuple(size) if size else None) or stated or tracing_size(config)


def counting_inputs(config: Mapping[str, Any], size: Sequence[int] | None = None) -> DemoInputs:
    """Return what to count and time the model of a config on: as :func:`tracing_inputs`.

    Only that the full size of the data comes before a stated one, which may be smaller for tracing.
    """
    stated = _stated_inputs(config)
    if isinstance(stated, Mapping) or callable(stated):
        return stated
    return (tuple(size) if size else None) or image_size_from_config(config) or stated


def _stated_inputs(config: Mapping[str, Any]) -> DemoInputs:
    mutator = (config.get('model') or {}).get('mutator') or {}
    stated = mutator.get('demo_inputs') or config.get('demo_inputs')
    if isinstance(stated, Mapping):
        return dict(stated)
    return stated if stated is None or callable(stated) else tuple(stated)


def _fixed_size(transform: Mapping[str, Any]) -> tuple[int, int] | None:
    name = str(transform.get('type', '')).rsplit('.', 1)[-1]
    key = _SIZE_KEYS.get(name)
    if key is None:
        return None
    size = transform.get(key, transform.get('crop_size'))
    if isinstance(size, int):
        return (size, size)
    if not isinstance(size, Sequence) or len(size) != 2 or not all(
            isinstance(s, int) and s > 0 for s in size):
        return None
    # Resize, and the transforms of pose estimation, name (width, height), crops (height, width).
    wide_first = name == 'Resize' or key == 'input_size'
    return (size[1], size[0]) if wide_first else (size[0], size[1])


_SIZE_KEYS = {
    'CenterCrop': 'crop_size', 'RandomCrop': 'crop_size', 'EfficientNetCenterCrop': 'crop_size',
    'RandomResizedCrop': 'scale', 'Resize': 'scale', 'Pad': 'size',
    'TopdownAffine': 'input_size', 'BottomupResize': 'input_size',
    'BottomupRandomAffine': 'input_size'}
