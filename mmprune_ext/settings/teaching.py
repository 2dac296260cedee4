"""Teachers that the command line names, and where a distillation's settings stand while a run is set up."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmengine.config import Config

from mmprune_ext.errors import ConfigError
from mmprune_ext.model_config import DISTILLATION, DISTILLED_TYPE, with_teachers
from mmprune_ext.units.demo_inputs import tracing_inputs


def add_teachers(config: Config, teachers: Sequence[str] | None, temperature: float | None) -> None:
    """Add what the command line says to a config as :func:`mmprune_ext.settings.reading.read_config` gives it.

    Args:
        config: The config, changed.
        teachers: ``CONFIG`` or ``CONFIG:CHECKPOINT`` of each.
        temperature: Of logits.

    Raises:
        ConfigError: If an entry is malformed, the config has teachers already, or nothing takes the temperature.
    """
    if teachers:
        if DISTILLATION in config:
            raise ConfigError('--teachers: the config has teachers of its own (model.teachers); change those')
        config[DISTILLATION] = {'type': DISTILLED_TYPE, 'teachers': [teacher_entry(text) for text in teachers]}
    if temperature is not None:
        if DISTILLATION not in config:
            raise ConfigError('--temperature: there are no teachers; give --teachers')
        config[DISTILLATION]['temperature'] = temperature


def teacher_entry(text: str) -> dict[str, str]:
    """Read ``CONFIG:CHECKPOINT``; a library's config has colons of its own, as URLs of checkpoints have.

    Raises:
        ConfigError: If it is something else.
    """
    match = re.fullmatch(r'(.+?\.py)(?::(.+))?', text)
    if match is None:
        raise ConfigError(f'--teachers: expected CONFIG.py or CONFIG.py:CHECKPOINT, got "{text}"')
    return {'config': match[1], **({'checkpoint': match[2]} if match[2] else {})}


def complete_distillation(config: Config) -> None:
    """Put the student back beside its teachers, with what all of them are tried on before the training."""
    settings = config.get(DISTILLATION)
    if settings is None:
        return
    inputs = tracing_inputs(config)
    if settings.get('demo_inputs') is None and inputs is not None:
        settings['demo_inputs'] = list(inputs) if isinstance(inputs, tuple) else inputs
    with_teachers(config)
