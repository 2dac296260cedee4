"""Training images as a model is going to see images: whole, neither cropped nor mixed at random."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config


def training_images(config: Config) -> Any:
    """Return a config's ``train_dataloader`` with the pipeline that its validation or test images pass.

    Classifiers of mmpretrain alone: their images are of one size behind either pipeline. Those of other libraries are
    not, or lack the annotations that training data have; of these, and where there is nothing to take the pipeline
    from, it is the ``train_dataloader`` as it is.
    """
    loader = config.get('train_dataloader')
    tested = next((config[f'{split}_dataloader'] for split in ('val', 'test')
                   if config.get(f'{split}_dataloader') is not None), None)
    if loader is None or tested is None or config.get('default_scope') != 'mmpretrain':
        return loader
    found = copy.deepcopy(loader)
    own, pipeline = _innermost(found), _innermost(tested).get('pipeline')
    if own.get('pipeline') and pipeline:
        own['pipeline'] = copy.deepcopy(pipeline)
    return found


def _innermost(loader: Mapping[str, Any]) -> Any:
    """Return the dataset in a dataloader that wraps no other, such as the one that ``RepeatDataset`` repeats."""
    dataset = loader.get('dataset')
    while isinstance(dataset, Mapping) and isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    return dataset if isinstance(dataset, Mapping) else {}
