"""The three kinds of ``model`` sections that a config has: dense, pruning run, compact.

Of a compact model the keys of the dense architecture stand at the section's own level, where the task
libraries and their tools look for them (``cfg.model.backbone``, ``cfg.model.test_cfg``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# Sections of a config that make it one of several runs; `runner_type` names what reads them.
JOBS = ('search', 'rounds')
COMPACT_TYPE = 'mmprune_ext.CompactModel'
# What a compact section says about itself; all else belongs to the architecture.
COMPACT_KEYS = ('type', 'architecture', 'units', 'init_cfg')


def is_compact(model: Mapping[str, Any]) -> bool:
    """Whether a model section is that of a compact model."""
    kind = model.get('type', '')
    return str(getattr(kind, '__name__', kind)).endswith('CompactModel')


def is_pruning(model: Mapping[str, Any]) -> bool:
    """Whether a model section is that of a pruning run: an algorithm with an ``architecture``."""
    return 'architecture' in model and not is_compact(model)


def architecture_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the dense model that a model section stands for."""
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
