"""Score a model's channels once, for any number of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger

from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.mutators.score_file import ScoreFile
from mmprune_ext.registry import MODELS
from mmprune_ext.units.parameters.fingerprint import weights_digest
from mmprune_ext.workflows.pruning import mutator_config, one_shot_algorithm, require_dense


def score_model(config: Config, checkpoint: str, path: str | Path, algorithm: str,
                mutator: Mapping[str, Any], input_size: Sequence[int] | None = None) -> ScoreFile:
    """Score a trained model's channels by a one-shot method and write them to a file.

    Args:
        config: The config of the dense model.
        checkpoint: Its weights.
        path: The file to write.
        algorithm: Short name of the method, ``chip``.
        mutator: Settings of the mutator; values of ``None`` are left to its defaults.
        input_size: ``(H, W)`` to trace on; the config's own by default.

    Returns:
        What was written.
    """
    method = one_shot_algorithm(algorithm)
    require_dense(config)
    MMLogger.get_instance('mmprune_ext')
    model = build_architecture(config.model.to_dict(), config.get('data_preprocessor'))
    load_weights(model, checkpoint)
    worker = MODELS.build(mutator_config(config, method, mutator, input_size))
    units = worker.prepare(model)
    scores = worker.scores(model)
    settings = {'checkpoint': Path(checkpoint).name, **worker.score_settings()}
    written = ScoreFile(method.short_name, units.architecture, weights_digest(model), scores, settings, str(path))
    written.save(path)
    return written
