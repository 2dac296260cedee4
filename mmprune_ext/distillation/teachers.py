"""The teachers: trained models of configs of their own, run on the batches of a student."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmprune_ext.compact.checkpoint import load_weights, require_checkpoint
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.distillation.capture import recorded
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.model_config import is_compact, is_pruning
from mmprune_ext.nearest import nearest
from mmprune_ext.settings.checks import check_files
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


@dataclass(frozen=True)
class TeacherConfig:
    """What a member of an ensemble is built from.

    Attributes:
        name: For messages.
        section: The model section of its config.
        preprocessor: Settings of its data preprocessor, if the section does not hold them.
        checkpoint: Its weights; ``None`` of a compact model, whose section names them.
        scope: Its config's default scope, in which it is built.
    """

    name: str
    section: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None
    checkpoint: str | None
    scope: str | None

    def build(self) -> nn.Module:
        """Return the model with its weights."""
        if self.checkpoint is not None:
            model = build_architecture(self.section, self.preprocessor)
            load_weights(model, self.checkpoint)
            return model
        given = {} if self.preprocessor is None else {'data_preprocessor': self.preprocessor}
        return MODELS.build({**self.section, **given})


def read_teachers(settings: Any) -> list[TeacherConfig]:
    """Read what an ensemble is built from; nothing that takes long has happened where it cannot be.

    Args:
        settings: One ``dict(config=..., checkpoint=..., data_preprocessor=...)`` a member.

    Raises:
        PruningError: If an entry is malformed, or a config or weights are missing.
    """
    if isinstance(settings, Mapping) or not isinstance(settings, Sequence) or isinstance(settings, str) or not settings:
        raise ConfigError('teachers should be a list of at least one dict(config=..., checkpoint=...), but got '
                          f'{settings!r:.200}')
    return [_described(entry, f'teachers[{number}]') for number, entry in enumerate(settings)]


def check_teachers(settings: Mapping[str, Any]) -> None:
    """Check the teachers in a distillation's settings, before anything that takes long; without a weight none is read.

    Raises:
        PruningError: As of :func:`read_teachers`.
    """
    if settings.get('loss_weight', 1) or (settings.get('maps') and settings.get('maps_weight', 1)):
        read_teachers(settings.get('teachers'))


def build_teachers(settings: Any, student: nn.Module) -> list[Teacher]:
    """Build an ensemble with its weights.

    Args:
        settings: As of :func:`read_teachers`.
        student: The model that is taught.

    Raises:
        PruningError: As of :func:`read_teachers`; if weights do not fit, or a model is of another task.
    """
    return [_teacher(member, student) for member in read_teachers(settings)]


def _described(entry: Any, where: str) -> TeacherConfig:
    if not isinstance(entry, Mapping) or not isinstance(entry.get('config'), str):
        raise ConfigError(f'{where} should be dict(config=PATH, checkpoint=PATH), but got {entry!r:.200}')
    for key in entry:
        if key not in KEYS:
            near = nearest(key, KEYS, 1)
            raise ConfigError(f'{where}: a teacher has no setting "{key}"; '
                              + (f'did you mean {near[0]}?' if near else f'it has {", ".join(KEYS)}'))
    where = f'{where} ({entry["config"]})'
    with _of_teacher(where):
        return _read(where, **entry)


def _teacher(member: TeacherConfig, student: nn.Module) -> Teacher:
    with _of_teacher(member.name), DefaultScope.overwrite_default_scope(member.scope):
        model = member.build()
    libraries = [library_of(m) or type(m).__module__.split('.')[0] for m in (model, student)]
    if libraries[0] != libraries[1]:
        raise ConfigError(f'{member.name}: is a {type(model).__name__} of {libraries[0]}, the student a '
                          f'{type(student).__name__} of {libraries[1]}; a teacher should be of the same task')
    return Teacher(model, member.name, student)


@contextlib.contextmanager
def _of_teacher(where: str) -> Iterator[None]:
    """Name the teacher in errors, and leave the default scope as it was: a config that is read sets it."""
    scope = DefaultScope.get_current_instance()
    try:
        with DefaultScope.overwrite_default_scope(scope and scope.scope_name):
            yield
    except PruningError as error:
        raise type(error)(f'{where}: {error}') from error


def _read(name: str, config: str, checkpoint: str | None = None,
          data_preprocessor: Mapping[str, Any] | None = None) -> TeacherConfig:
    read = read_config(config)
    section, preprocessor, scope = read.model, read.get('data_preprocessor'), read.get('default_scope')
    if data_preprocessor is not None:
        preprocessor = {**(section.pop('data_preprocessor', None) or preprocessor or {}), **data_preprocessor}
    if is_pruning(section):
        raise ConfigError(f'its model is that of a {section.type} run; export it with tools/export_compact.py, and '
                          'give the compact config')
    if not is_compact(section):
        if checkpoint is None:
            raise ConfigError('no weights; give its checkpoint (only a compact config names its own)')
        require_checkpoint(checkpoint)
        return TeacherConfig(name, section, preprocessor, checkpoint, scope)
    if checkpoint is not None:
        section.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    if not section.get('init_cfg'):
        raise ConfigError('the compact config names no weights; give its checkpoint')
    section.init_cfg.strict = True
    if 'checkpoint' in section.init_cfg:
        require_checkpoint(section.init_cfg.checkpoint)
    check_files(section)
    return TeacherConfig(name, section, preprocessor, None, scope)
