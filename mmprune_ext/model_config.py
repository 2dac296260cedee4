"""The kinds of ``model`` sections that a config has: dense, pruning run, compact, and one of these beside teachers.

Of a compact model the keys of the dense architecture stand at the section's own level, where the task
libraries and their tools look for them (``cfg.model.backbone``, ``cfg.model.test_cfg``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

from mmprune_ext.errors import ConfigError

# Sections of a config that make it one of several runs; `runner_type` names what reads them.
JOBS = ('search', 'rounds')
COMPACT_TYPE = 'mmprune_ext.CompactModel'
DISTILLED_TYPE = 'mmprune_ext.Distilled'
# Where the settings of a distillation wait while a command looks at the student.
DISTILLATION = 'distillation'
# What a compact section says about itself; all else belongs to the architecture.
COMPACT_KEYS = ('type', 'architecture', 'units', 'init_cfg')


def is_compact(model: Mapping[str, Any]) -> bool:
    """Whether a model section is that of a compact model."""
    kind = model.get('type', '')
    return str(getattr(kind, '__name__', kind)).endswith('CompactModel')


def is_distilled(model: Mapping[str, Any]) -> bool:
    """Whether a model section is that of a student beside its teachers."""
    kind = model.get('type', '')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2] == 'Distilled'


def take_student(config: MutableMapping[str, Any]) -> None:
    """Let the model section of a config be the student's, in place, where it is that of a distillation.

    Teachers matter in training alone, and all else reads a student's section as if there were none. What the section
    says beside is kept apart for :func:`with_teachers`.

    Raises:
        ConfigError: If there is no student.
    """
    model = config.get('model')
    if not isinstance(model, Mapping) or not is_distilled(model):
        return
    if not isinstance(model.get('student'), Mapping):
        raise ConfigError('model: a Distilled needs a student, the model section that is trained, but got '
                          f'{model.get("student")!r:.200}')
    config['model'] = model['student']
    config[DISTILLATION] = {key: value for key, value in model.items() if key != 'student'}


def with_teachers(config: MutableMapping[str, Any]) -> None:
    """Put the model section of a config, in place, back beside the teachers that were kept apart."""
    settings = config.pop(DISTILLATION, None)
    if settings is not None:
        config['model'] = {**settings, 'student': config['model']}


def is_pruning(model: Mapping[str, Any]) -> bool:
    """Whether a model section is that of a pruning run: an algorithm with an ``architecture``."""
    return 'architecture' in model and not is_compact(model)


def architecture_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the dense model that a model section stands for."""
    if is_distilled(model):
        return architecture_of(model['student'])
    if is_pruning(model):
        return model['architecture']
    if not is_compact(model):
        return model
    settings = {key: value for key, value in model.items() if key not in COMPACT_KEYS}
    return with_settings(model.get('architecture') or {}, settings)


def with_settings(architecture: str | Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of an architecture that is given in two parts.

    Args:
        architecture: Its registered type, or a config with a ``type`` (files of version 0.1 hold all of
            it here).
        settings: The other keys; where both have a key, dicts are merged and other values replaced.
    """
    if not isinstance(architecture, Mapping):
        return {'type': architecture, **settings}
    merged = dict(architecture)
    for key, value in settings.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = with_settings(merged[key], value) if both else value
    return merged


def compact_section(architecture: Mapping[str, Any], units: str, checkpoint: str) -> dict[str, Any]:
    """Return the model section of a compact model.

    Args:
        architecture: Config of the dense model.
        units: Path of the channel-unit file.
        checkpoint: Path of the compact weights.
    """
    content = copy.deepcopy(dict(architecture))
    # What the architecture calls as the section calls its own stays apart.
    own = {key: content.pop(key) for key in COMPACT_KEYS if key in content}
    return {'type': COMPACT_TYPE,
            'architecture': own['type'] if len(own) == 1 else own,
            **content,
            'units': units,
            'init_cfg': {'type': 'Pretrained', 'checkpoint': checkpoint}}
