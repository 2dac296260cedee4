"""The metric of a config's test set, through a runtime and its decoding, beside that of PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch import nn

from mmprune_ext.deploy import decoding
from mmprune_ext.deploy.passes import Plan
from mmprune_ext.deploy.runtimes import Runtime
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.evaluation.metering import numbers, quiet
from mmprune_ext.evaluation.validation import Validation

TOLERANCE = 1e-3


class DeployedMetric:
    """Metrics of a model and of what was exported of it, on the same samples.

    Both make one pass an image: the tests by flipped images and by windows that a config may ask for are left out.

    Args:
        config: The config, with its test data and metrics.
        samples: How many samples of the test set; all for 0.
        model: The model in PyTorch.
        plan: What is exported of it.

    Raises:
        ConfigError: If the outputs have no decoding, or the data do not exist.
    """

    def __init__(self, config: Config, samples: int, model: nn.Module, plan: Plan) -> None:
        if plan.task not in _FILLERS:
            raise ConfigError(f'--metric: the outputs are raw ({plan.decoding["reason"]}), no metric can be computed '
                              'from them; leave it out')
        self.model, self.task = model, plan.task
        self.validation = Validation(config, samples, ('test', 'val'))

    def compare(self, runtime: Runtime, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return each metric of both, and the number of samples.

        Args:
            runtime: Runs the exported model.
            settings: Its description.

        Raises:
            PruningError: If a metric differs by more than :data:`TOLERANCE`, or an image does not fit a fixed size.
        """
        with quiet():
            evaluators = [self.validation.evaluator() for _ in range(2)]
        with torch.no_grad(), _one_pass(self.model):
            for batch in self.validation.batches:
                data = self.model.data_preprocessor(batch, False)
                images, samples = data['inputs'], data['data_samples']
                ours = [sample.clone() for sample in samples]
                theirs = self.model(images, samples, mode='predict')
                outputs = _run(runtime, images.numpy(), settings)
                places = [_place(sample.metainfo) for sample in ours]
                for sample, found in zip(ours, decoding.decode(outputs, settings, places)):
                    _FILLERS[self.task](self.model, sample, found)
                for evaluator, predicted in zip(evaluators, (theirs, ours)):
                    evaluator.process(data_samples=predicted, data_batch=batch)
        with quiet():
            pytorch, other = (numbers(evaluator.evaluate(self.validation.size)) for evaluator in evaluators)
        far = [name for name, value in pytorch.items() if not _near(value, other.get(name, np.nan))]
        if far:
            raise PruningError(f'--metric: {far[0]} is {pytorch[far[0]]:.4f} in PyTorch and '
                               f'{other.get(far[0], np.nan):.4f} in the exported model; nothing was written')
        return {'samples': self.validation.size,
                'metrics': {name: {'torch': value, 'runtime': other[name]} for name, value in pytorch.items()}}


def _near(wanted: float, got: float) -> bool:
    """Whether two values of a metric, a share or in percent, are the same but for rounding."""
    return abs(wanted - got) <= TOLERANCE * max(1, abs(wanted)) or (np.isnan(wanted) and np.isnan(got))


def _run(runtime: Runtime, images: np.ndarray, settings: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the outputs for a batch; a model of a fixed batch gets as many at a time, the last ones repeated."""
    number, _, *size = settings['input']['shape']
    if not isinstance(size[0], str) and tuple(size) != images.shape[2:]:
        raise PruningError(f'--metric: an image of the test set is {images.shape[2]}x{images.shape[3]} as it enters '
                           f'the model, which is exported for {size[0]}x{size[1]}; give --dynamic size, or that '
                           '--shape')
    if isinstance(number, str):
        return runtime(images)
    parts = []
    for start in range(0, len(images), number):
        part = images[start:start + number]
        filled = np.concatenate([part, *[part[-1:]] * (number - len(part))])
        parts.append([output[:len(part)] for output in runtime(filled)])
    return [np.concatenate(outputs) for outputs in zip(*parts)]


def _place(metainfo: Mapping[str, Any]) -> dict[str, Any]:
    size = metainfo.get('img_shape', (0, 0))[:2]
    scale = metainfo.get('scale_factor', (1., 1.))
    return {'size': size, 'original': metainfo.get('ori_shape', size)[:2], 'scale': tuple(scale)[:2]}


@contextlib.contextmanager
def _one_pass(model: nn.Module) -> Iterator[None]:
    """Let a model look at each image once and whole in this block."""
    settings = getattr(model, 'test_cfg', None)
    changed = {'flip_test': False, 'mode': 'whole'}
    before = {key: settings[key] for key in changed if isinstance(settings, dict) and key in settings}
    try:
        for key in before:
            settings[key] = changed[key]
        yield
    finally:
        for key, value in before.items():
            settings[key] = value


def _classification(model: nn.Module, sample: Any, found: Mapping[str, Any]) -> None:
    sample.set_pred_score(torch.from_numpy(found['scores'])).set_pred_label(found['label'])


def _detection(model: nn.Module, sample: Any, found: Mapping[str, Any]) -> None:
    sample.pred_instances = InstanceData(**{name: torch.from_numpy(np.ascontiguousarray(found[key])) for name, key in (
        ('bboxes', 'boxes'), ('scores', 'scores'), ('labels', 'labels'))})


def _segmentation(model: nn.Module, sample: Any, found: Mapping[str, Any]) -> None:
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(found['labels'])[None])


def _pose(model: nn.Module, sample: Any, found: Mapping[str, Any]) -> None:
    instances = InstanceData(keypoints=found['keypoints'][None], keypoint_scores=found['scores'][None])
    model.add_pred_to_datasample([instances], None, [sample])


_FILLERS = {'classification': _classification, 'detection': _detection, 'segmentation': _segmentation, 'pose': _pose}
