"""What annotation files hold against what a config expects, before any long work starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprune_ext.errors import ConfigError
from mmprune_ext.model_config import architecture_of, is_pruning

# Reading a larger file twice takes long; its dataset tells what is wrong with it.
MAX_BYTES = 64 * 2 ** 20


def check_annotations(path: Path, dataset: Mapping[str, Any], kind: type | None, split: str) -> None:
    """Check an annotation file in COCO's format; others are left to their dataset.

    Args:
        path: The file.
        dataset: Config of the dataset.
        kind: Its class, if it is known.
        split: ``train``, ``val`` or ``test``, for messages.

    Raises:
        ConfigError: If it is no JSON, or holds nothing that can be learned or measured.
    """
    if path.suffix != '.json' or not path.is_file() or path.stat().st_size > MAX_BYTES:
        return
    where = f'{split}_dataloader: ann_file {path}'
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f'{where} is not JSON that can be read ({error})') from error
    if not isinstance(content, dict) or not {'images', 'categories'} <= content.keys():
        return
    annotations = content.get('annotations') or []
    if not content['images'] or (split != 'test' and not annotations):
        raise ConfigError(f'{where} holds no {"annotations" if content["images"] else "images"}')
    if library_of(kind) == 'mmpose':
        if annotations and not any('keypoints' in item for item in annotations):
            raise ConfigError(f'{where}: no annotation has "keypoints", which a pose estimator learns; '
                              'give the file with person keypoints')
        return
    names, known = class_names(dataset, kind), [item['name'] for item in content['categories']]
    if names and library_of(kind) == 'mmdet' and not set(names) & set(known):
        raise ConfigError(f'{where} has none of the classes in metainfo ({_few(names)}); its categories '
                          f'are {_few(known)}; set {split}_dataloader.dataset.metainfo')


def check_classes(config: Mapping[str, Any], dataset: Mapping[str, Any], kind: type | None,
                  split: str) -> None:
    """Check that the heads of a config have as many classes as its dataset.

    Raises:
        ConfigError: Naming the first head that has another number.
    """
    model = architecture_of(config['model'])
    library = library_of(kind)
    names = class_names(dataset, kind)
    if not names or library not in _HEADS or 'language_model' in model:
        return  # what is asked in words has as many outputs as words
    for path in _HEADS[library]:
        heads: Any = model
        for key in path.split('.'):
            heads = heads.get(key) if isinstance(heads, Mapping) else None
        for head in heads if isinstance(heads, Sequence) else [heads]:
            count = head.get('num_classes') if isinstance(head, Mapping) else None
            # A classifier may have outputs to spare.
            if isinstance(count, int) and (count < len(names) if library == 'mmpretrain'
                                           else count != len(names)):
                place = 'model.architecture' if is_pruning(config['model']) else 'model'
                raise ConfigError(
                    f'{place}.{path}: num_classes is {count}, but the dataset of {split}_dataloader has '
                    f'{len(names)} classes ({_few(names)}); set num_classes, or metainfo.classes of '
                    'the dataset')


_HEADS = {'mmpretrain': ('head', ), 'mmdet': ('bbox_head', 'roi_head.bbox_head'),
          'mmseg': ('decode_head', 'auxiliary_head')}


def library_of(kind: type | None) -> str:
    """Return the library that a dataset's class comes from."""
    names = [cls.__module__.split('.')[0] for cls in getattr(kind, '__mro__', ())]
    return next((name for name in names if name in ('mmpretrain', 'mmdet', 'mmseg', 'mmpose')), '')


def class_names(dataset: Mapping[str, Any], kind: type | None) -> list[str]:
    """Return the class names that a dataset's config states, else those of its class.

    Of a panoptic dataset the things: these are what heads with ``num_classes`` detect.
    """
    metainfo = {**(getattr(kind, 'METAINFO', None) or {}), **(dataset.get('metainfo') or {})}
    stated = metainfo.get('thing_classes', metainfo.get('classes'))
    return list(stated) if isinstance(stated, Sequence) and not isinstance(stated, str) else []


def _few(names: Sequence[str]) -> str:
    return ', '.join(map(str, names[:6])) + (', ...' if len(names) > 6 else '')
