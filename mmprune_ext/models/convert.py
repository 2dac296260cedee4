"""Convert public CIFAR ResNet checkpoints to the names of this package.

The format is that of github.com/akamaster/pytorch_resnet_cifar10 (BSD-2-Clause), which many later
repositories took over: `state_dict` inside a dict, keys with the `module.` of DataParallel,
classifier `linear`.
"""
import os
import pickle
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mmprune_ext.atomic import atomic_path
from mmprune_ext.errors import CheckpointError
from mmprune_ext.models.cifar_resnet import CifarResNet
from mmprune_ext.trust import refused_name

MODELS = ('resnet20', 'resnet32', 'resnet44', 'resnet56', 'resnet110')
NAMED_AT_MOST = 5  # names listed in one message


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file, without the `module.` prefix.

    Only tensors and plain containers are unpickled, so a file cannot run code.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated, or holds no state dict.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f'{path}: no such checkpoint file')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError,
            AttributeError) as error:
        name = refused_name(error)
        if name:
            raise CheckpointError(f'{path}: holds more than weights, {name}, which may run code when it is read; '
                                  'public CIFAR checkpoints hold weights alone') from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f'{path}: not a readable PyTorch checkpoint (truncated, or not a '
                              f'checkpoint at all): {reason}') from error
    state = content.get('state_dict', content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(
            isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f'{path}: holds no state dict (a mapping from names to tensors, '
                              'alone or under the key state_dict)')
    return {name.removeprefix('module.'): value for name, value in state.items()}


def detect_model(state: Mapping[str, Tensor]) -> str:
    """Return the name in MODELS whose number of blocks `state` has.

    Raises:
        CheckpointError: no such network.
    """
    blocks = {int(found[1]) for name in state
              if (found := re.match(r'layer1\.(\d+)\.conv1\.weight$', name))}
    model = f'resnet{6 * len(blocks) + 2}'
    if model not in MODELS:
        raise CheckpointError(f'a stage 1 of {len(blocks)} blocks belongs to none of '
                              f'{", ".join(MODELS)}: is this a CIFAR ResNet checkpoint?')
    return model


def convert_state_dict(state: Mapping[str, Tensor], model: str | None = None) -> dict[str, Tensor]:
    """Rename the tensors of a public CIFAR ResNet to those of an ImageClassifier of ours.

    Args:
        state: names without `module.`: `conv1.weight`, `layer1.0.bn1.bias`, `linear.weight`, ...
        model: a name in MODELS; None finds it from `state`.

    Returns:
        `backbone.*` (CifarResNet, shortcut A) and `head.fc.*` (LinearClsHead).

    Raises:
        CheckpointError: unknown model; names that are missing or not expected; a wrong shape.
    """
    model = detect_model(state) if model is None else model
    if model not in MODELS:
        raise CheckpointError(f'unknown model {model!r}: must be one of {", ".join(MODELS)}')
    expected = _expected(model, state)
    # Files from before PyTorch 0.4.1 lack this counter; it matters only to a BN with momentum=None.
    given = {**{name: tensor for name, tensor in expected.items()
                if name.endswith('.num_batches_tracked')}, **state}
    problems = _named('missing', [name for name in expected if name not in given])
    problems += _named('unexpected', [name for name in given if name not in expected])
    problems += _named('wrong shape', [
        f'{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}'
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape])
    if problems:
        raise CheckpointError(f'not the weights of {model}: ' + '; '.join(problems))
    return {_our_name(name): given[name] for name in expected}


def convert_checkpoint(source: str | os.PathLike, target: str | os.PathLike,
                       model: str | None = None) -> str:
    """Convert the file `source` and write `target`, whole or not at all.

    Returns:
        The name of the model.

    Raises:
        CheckpointError: see read_state_dict and convert_state_dict; or `target` cannot be written.
    """
    state = read_state_dict(source)
    try:
        model = detect_model(state) if model is None else model
        converted = convert_state_dict(state, model)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from error
    meta = dict(converted_from=os.path.basename(source), model=model)
    try:
        with atomic_path(target) as temporary:
            torch.save(dict(meta=meta, state_dict=converted), temporary)
    except OSError as error:
        raise CheckpointError(f'{target}: cannot be written: {error.strerror or error}') from error
    return model


def _expected(model: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return names and shapes in the public format; the number of classes is the file's own."""
    backbone = CifarResNet(int(model.removeprefix('resnet'))).state_dict()
    bias = state.get('linear.bias')
    classes = bias.shape[0] if bias is not None and bias.ndim == 1 else 10
    width = backbone['layer3.0.conv1.weight'].shape[0]
    return {**backbone, 'linear.weight': torch.empty(classes, width),
            'linear.bias': torch.empty(classes)}


def _our_name(name: str) -> str:
    if name.startswith('linear.'):
        return 'head.fc.' + name.removeprefix('linear.')
    return f'backbone.{name}'


def _named(what: str, names: list[str]) -> list[str]:
    """Return at most one clause: how many and the first few names."""
    if not names:
        return []
    more = f' and {len(names) - NAMED_AT_MOST} more' if len(names) > NAMED_AT_MOST else ''
    return [f'{len(names)} {what}: {", ".join(names[:NAMED_AT_MOST])}{more}']
