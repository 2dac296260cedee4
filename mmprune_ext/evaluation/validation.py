"""A bounded number of validation samples, and the config's own metrics on them."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mmengine
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, EVALUATOR
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import Sampler

from mmprune_ext.errors import ConfigError
from mmprune_ext.evaluation.copies import Copies
from mmprune_ext.settings.checks import check_datasets

MEMORY = 512 * 1024 ** 2  # bytes of batches that are held at most


class KeptBatches:
    """The batches of a dataloader, read once and held where they are small.

    Args:
        loader: The dataloader; it has to give the same batches each time.
        number: Take so many batches; all by default.
        memory: Bytes of tensors that are held at most; if there are more, the data are read anew each time.
    """

    def __init__(self, loader: Iterable[Any], number: int | None = None, memory: int = MEMORY) -> None:
        self.loader = loader
        self.number = number
        self.memory = memory
        self._held: list[Copies] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield batches that may be changed."""
        if self._held is not None:
            yield from (copies.new() for copies in self._held)
            return
        held, size, count = [], 0, 0
        for count, batch in enumerate(islice(self.loader, self.number), 1):
            size += _bytes(batch)
            if size <= self.memory:
                held.append(Copies(copy.deepcopy(batch)))
            if count == self.number:  # after which nobody need ask for another
                self._hold(held, count)
            yield batch
        self._hold(held, count)

    def _hold(self, held: list[Copies], count: int) -> None:
        if len(held) == count:
            self._held = held
            self.loader = ()  # ends its processes


class _Chosen(Sampler):
    """Samples of a dataset by their positions, in order."""

    def __init__(self, dataset: Any, places: Sequence[int]) -> None:
        self.dataset = dataset  # which batch samplers look for
        self.places = places

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Validation:
    """Samples of a config's validation set, and its metrics on them.

    The samples are spread evenly over the set: the first ones of a folder of classes are all of one class. Where the
    metrics compare with an annotation file, samples of one image stay together, and the file is cut down to their
    images; the others would count as missed.

    Args:
        config: The config; ``val_dataloader`` and ``val_evaluator``, or those of the test where these lack.
        samples: So many samples; all if there are not more, and for 0.
        splits: Which of them to look for, in this order.

    Attributes:
        split: ``val`` or ``test``.
        size: Number of samples.
        batches: Their batches.
        num_batches: How many these are.
        digest: Of the settings of dataset and metrics.

    Raises:
        ConfigError: If the config has neither, the data do not exist, or an annotation file cannot be cut down.
    """

    def __init__(self, config: Config, samples: int, splits: Sequence[str] = ('val', 'test')) -> None:
        self.split = next((split for split in splits if config.get(f'{split}_dataloader') is not None
                           and config.get(f'{split}_evaluator') is not None), '')
        if not self.split:
            raise ConfigError('the config lacks val_dataloader and val_evaluator (and those of the test), needed to '
                              'measure the metric')
        check_datasets(config, [self.split])
        loader = copy.deepcopy(dict(config[f'{self.split}_dataloader']))
        metrics = copy.deepcopy(config[f'{self.split}_evaluator'])
        self.digest = hashlib.sha256(f'{loader["dataset"]!r} {metrics!r}'.encode()).hexdigest()[:16]
        dataset = loader['dataset']
        loader['dataset'] = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        if len(loader['dataset']) == 0:
            raise ConfigError(f'{self.split}_dataloader: its dataset has no samples')
        self._folder = tempfile.TemporaryDirectory(prefix='mmprune_ext_')
        chosen = self._choose(loader['dataset'], metrics, samples)
        self.size = len(chosen)
        self._meta = getattr(loader['dataset'], 'metainfo', None)
        self._metrics = metrics
        loader = Runner.build_dataloader({**loader, 'sampler': _Chosen(loader['dataset'], chosen)}, seed=0)
        self.batches, self.num_batches = KeptBatches(loader), len(loader)

    def evaluator(self) -> Evaluator:
        """Return the config's metrics, which have not seen anything yet."""
        metrics = copy.deepcopy(self._metrics)
        if isinstance(metrics, Mapping) and 'metrics' in metrics:
            evaluator = EVALUATOR.build({'type': 'Evaluator', **metrics})
        else:
            evaluator = metrics if isinstance(metrics, Evaluator) else Evaluator(metrics)
        if self._meta is not None:
            evaluator.dataset_meta = self._meta
        return evaluator

    def _choose(self, dataset: Any, metrics: Any, samples: int) -> list[int]:
        """Return the samples' positions; the metrics' annotation files are changed to those of their images."""
        if not 0 < samples < len(dataset):
            return list(range(len(dataset)))
        annotated = [metric for metric in _metrics_in(metrics) if isinstance(metric.get('ann_file'), str)]
        if not annotated:
            return _spread(len(dataset), samples)
        images = self._by_image(dataset)
        ids = list(images)
        # About as many samples: images differ in how many they have.
        wanted = [ids[place] for place in _spread(len(ids), max(samples * len(ids) // len(dataset), 1))]
        for number, metric in enumerate(annotated):
            path = Path(self._folder.name) / f'{number}.json'
            path.write_text(json.dumps(self._cut(metric, set(wanted))))
            metric['ann_file'] = str(path)
        return sorted(place for image in wanted for place in images[image])

    def _by_image(self, dataset: Any) -> dict[Any, list[int]]:
        """Return the positions of the samples of each image."""
        found: dict[Any, list[int]] = {}
        try:
            for place in range(len(dataset)):
                found.setdefault(dataset.get_data_info(place)['img_id'], []).append(place)
        except (AttributeError, KeyError) as error:
            raise ConfigError(f'{self.split}_dataloader: the samples of {type(dataset).__name__} do not tell their '
                              f'"img_id" ({error}), which is needed to measure on some of them; measure on all: '
                              '--samples 0') from error
        return found

    def _cut(self, metric: Mapping[str, Any], images: Collection[Any]) -> dict[str, Any]:
        path = metric['ann_file']
        where = f'{self.split}_evaluator: {metric.get("type")} compares with all of {path}'
        try:
            content = mmengine.load(path, backend_args=metric.get('backend_args'))
            return {**content, 'images': [image for image in content['images'] if image['id'] in images],
                    'annotations': [item for item in content['annotations'] if item['image_id'] in images]}
        except Exception as error:  # a file of any other form
            raise ConfigError(f'{where}, which cannot be cut down to some images ({type(error).__name__}: {error}); '
                              'measure on all samples: --samples 0') from error


def _spread(total: int, number: int) -> list[int]:
    return [total * place // number for place in range(number)]


def _metrics_in(config: Any) -> Iterator[Any]:
    """Yield the configs of single metrics."""
    if isinstance(config, Mapping) and 'metrics' in config:
        config = config['metrics']
    if isinstance(config, Mapping):
        yield config
    elif isinstance(config, Sequence):
        yield from (item for item in config if isinstance(item, Mapping))


def _bytes(value: Any) -> int:
    """Return the size of the tensors in nested lists and dicts; other things of a batch are small beside them."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
