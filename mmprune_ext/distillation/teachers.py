"""The teachers: trained models of configs of their own, run on the batches of a student."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.distillation.capture import recorded
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.model_config import is_compact, is_pruning
from mmprune_ext.settings.reading import read_config
from mmprune_ext.units.demo_inputs import set_training
from mmprune_ext.units.task_samples import library_of

KEYS = ('config', 'checkpoint', 'data_preprocessor')


@dataclass(frozen=True)
class Normalisation:
    """What a data preprocessor makes of the colours of an image: ``(x - mean) / std``, after the order of channels.

    Attributes:
        mean: ``(C, 1, 1)``.
        std: ``(C, 1, 1)``.
        reversed: Whether the channels' order is not that of the data.
    """

    mean: Tensor
    std: Tensor
    reversed: bool

    @classmethod
    def of(cls, preprocessor: nn.Module) -> Normalisation | None:
        """Return that of a data preprocessor, ``None`` for one that does not state it as OpenMMLab's do."""
        order = any(bool(getattr(preprocessor, name, False)) for name in ('to_rgb', '_channel_conversion'))
        if getattr(preprocessor, '_enable_normalize', False):
            return cls(preprocessor.mean, preprocessor.std, order)
        if hasattr(preprocessor, '_enable_normalize') or type(preprocessor) is BaseDataPreprocessor:
            return cls(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), order)
        return None

    def same_as(self, other: Normalisation) -> bool:
        """Whether another one gives the same values."""
        pairs = zip((self.mean, self.std), (other.mean, other.std))
        return self.reversed == other.reversed and all(
            a.shape == b.shape and torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


class Teacher:
    """One member of an ensemble.

    Args:
        model: The trained model; it is put into eval mode and gets no gradients.
        name: For messages.
        student: The model that is taught, of whose data preprocessor the images come.

    Raises:
        ConfigError: If the images cannot be made what the teacher was trained on.
    """

    def __init__(self, model: nn.Module, name: str, student: nn.Module) -> None:
        self.model = model.requires_grad_(False)
        self.name = name
        set_training(self.model, False)
        self.given, self.own = (Normalisation.of(m.data_preprocessor) for m in (student, model))
        unknown = self.given is None or self.own is None
        if unknown and repr(student.data_preprocessor) != repr(model.data_preprocessor):
            here, there = (type(m.data_preprocessor).__name__ for m in (student, model))
            raise ConfigError(f'{name}: the data preprocessors are {there} there and {here} here, and one of them does '
                              'not state mean, std and order of channels as OpenMMLab\'s do: images cannot be '
                              'converted; let both have the same')

    def converted(self, images: Tensor) -> Tensor:
        """Return the student's images, ``(N, C, H, W)``, in the teacher's normalisation and order of channels.

        What was padded keeps the student's colour. Mixtures of images are mixtures of the same images.
        """
        if self.given is None or self.own is None or self.given.same_as(self.own):
            return images
        given, own = ([value.to(images) for value in (n.mean, n.std)] for n in (self.given, self.own))
        images = images * given[1] + given[0]
        if self.given.reversed != self.own.reversed and images.shape[1] == 3:
            images = images.flip(1)
        return (images - own[0]) / own[1]

    @torch.no_grad()
    def results(self, paths: Sequence[str], images: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what parts of the teacher give for a batch of the student.

        Args:
            paths: The parts.
            images: ``(N, C, H, W)`` as the student takes them.
            args: Other arguments of the student's forward.
            kwargs: The same; ``mode`` is not read.
        """
        if _device(self.model) != images.device:
            self.model.to(images.device)
        # A cascade of segmentation heads has no other forward that reaches its heads.
        mode = 'predict' if library_of(self.model) == 'mmseg' and hasattr(self.model, 'num_stages') else 'tensor'
        with recorded(self.model, paths, stop=True) as found:
            self.model(self.converted(images), *args, **{**kwargs, 'mode': mode})
        return found


def _device(model: nn.Module) -> torch.device | None:
    return next((value.device for value in model.parameters()), None)


def build_teachers(settings: Any, student: nn.Module) -> list[Teacher]:
    """Build an ensemble with its weights.

    Args:
        settings: One ``dict(config=..., checkpoint=..., data_preprocessor=...)`` a member.
        student: The model that is taught.

    Raises:
        PruningError: If an entry is malformed, a file is missing, weights do not fit, or a model is of another task.
    """
    if isinstance(settings, Mapping) or not isinstance(settings, Sequence) or isinstance(settings, str) or not settings:
        raise ConfigError('teachers should be a list of at least one dict(config=..., checkpoint=...), but got '
                          f'{settings!r:.200}')
    return [_teacher(entry, f'teachers[{number}]', student) for number, entry in enumerate(settings)]


def _teacher(entry: Any, where: str, student: nn.Module) -> Teacher:
    if not isinstance(entry, Mapping) or not isinstance(entry.get('config'), str):
        raise ConfigError(f'{where} should be dict(config=PATH, checkpoint=PATH), but got {entry!r:.200}')
    for key in entry:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise ConfigError(f'{where}: a teacher has no setting "{key}"; '
                              + (f'did you mean {near[0]}?' if near else f'it has {", ".join(KEYS)}'))
    where = f'{where} ({entry["config"]})'
    scope = DefaultScope.get_current_instance()
    try:
        with DefaultScope.overwrite_default_scope(scope and scope.scope_name):
            model = _build(**entry)
    except PruningError as error:
        raise type(error)(f'{where}: {error}') from error
    libraries = [library_of(m) or type(m).__module__.split('.')[0] for m in (model, student)]
    if libraries[0] != libraries[1]:
        raise ConfigError(f'{where}: is a {type(model).__name__} of {libraries[0]}, the student a '
                          f'{type(student).__name__} of {libraries[1]}; a teacher should be of the same task')
    return Teacher(model, where, student)


def _build(config: str, checkpoint: str | None = None, data_preprocessor: Mapping[str, Any] | None = None) -> nn.Module:
    """Return the model of a config with its weights."""
    read = read_config(config)
    section, preprocessor = read.model, read.get('data_preprocessor')
    if data_preprocessor is not None:
        preprocessor = {**(section.pop('data_preprocessor', None) or preprocessor or {}), **data_preprocessor}
    if is_pruning(section):
        raise ConfigError(f'its model is that of a {section.type} run; export it with tools/export_compact.py, and '
                          'give the compact config')
    if not is_compact(section):
        if checkpoint is None:
            raise ConfigError('no weights; give its checkpoint (only a compact config names its own)')
        model = build_architecture(section, preprocessor)
        load_weights(model, checkpoint)
        return model
    if checkpoint is not None:
        section.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    if not section.get('init_cfg'):
        raise ConfigError('the compact config names no weights; give its checkpoint')
    section.init_cfg.strict = True
    return MODELS.build({**section, **({} if preprocessor is None else {'data_preprocessor': preprocessor})})
