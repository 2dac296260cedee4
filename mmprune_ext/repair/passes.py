"""Passes of the dense and the slimmed model over the same calibration images, side by side."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor, nn

from mmprune_ext.mutators.calibration import feature_pass
from mmprune_ext.repair.watch import replaced

# How much a pass takes at a time: small images together, large ones by themselves.
IMAGES, BYTES = 128, 8 * 2 ** 20


def calibration_batches(model: nn.Module, dataloader: Iterable[Any], num_images: int) -> Iterator[Any]:
    """Yield this process's share of the images, preprocessed, in batches of a size that suits a pass.

    Args:
        model: The model whose preprocessor is used, if it has one.
        dataloader: Batches as a Runner's dataloader gives them; of a model without a preprocessor tensors.
        num_images: Of all processes together.
    """
    left = num_images // get_world_size() + (get_rank() < num_images % get_world_size())
    preprocess = getattr(model, 'data_preprocessor', None)
    waiting: list[Any] = []
    for batch in dataloader if left else ():
        # Without what mixes images of a batch, or resizes it at random.
        plain = getattr(preprocess, 'batch_augments', None) is None
        data = batch if preprocess is None else preprocess(batch, plain)
        for part in parts_of(data, IMAGES, left):
            left -= images_in(part)
            if waiting and not _fit_together(waiting, part):
                yield _joined(waiting)
                waiting = []
            waiting.append(part)
        if left <= 0:
            break
    if waiting:
        yield _joined(waiting)


def images_in(data: Any) -> int:
    """Return the number of images of a batch."""
    return len(data['inputs'] if isinstance(data, dict) else data)


def parts_of(data: Any, size: int, left: int | None = None) -> Iterator[Any]:
    """Yield a batch in parts of at most ``size`` images, ``left`` images in all."""
    end = images_in(data) if left is None else min(images_in(data), left)
    for first in range(0, end, size):
        some = slice(first, min(first + size, end))
        if isinstance(data, dict):
            yield {key: value[some] if isinstance(value, (Tensor, list)) else value for key, value in data.items()}
        else:
            yield data[some]


def _fit_together(waiting: list[Any], part: Any) -> bool:
    first, last = (data['inputs'] if isinstance(data, dict) else data for data in (waiting[0], part))
    if not (isinstance(first, Tensor) and isinstance(last, Tensor)) or first.shape[1:] != last.shape[1:]:
        return False
    images = sum(map(images_in, waiting)) + len(last)
    return images <= IMAGES and images * last[0].numel() * last.element_size() <= BYTES


def _joined(waiting: list[Any]) -> Any:
    if len(waiting) == 1:
        return waiting[0]
    if not isinstance(waiting[0], dict):
        return torch.cat(waiting)
    found = {}
    for key, value in waiting[0].items():
        values = [data[key] for data in waiting]
        found[key] = torch.cat(values) if isinstance(value, Tensor) else (
            sum(values, []) if isinstance(value, list) else value)
    return found


class PassPair:
    """How both models are run on a batch.

    The regions that a two-stage detector's second stage looks at are those that the dense model proposes: the
    slimmed model's own would be others, and their outputs could not be compared.

    Args:
        dense: The dense model.
        pruned: The slimmed model.
        layers: Paths of the layers that the pass must reach.
    """

    def __init__(self, dense: nn.Module, pruned: nn.Module, layers: Collection[str]) -> None:
        self._forwards = [feature_pass(model, layers) for model in (dense, pruned)]
        self._stack = contextlib.ExitStack()
        self._here = threading.local()
        self._models = dense, pruned

    def __enter__(self) -> PassPair:
        for number, model in enumerate(self._models):
            for path, part in getattr(model, 'rpn_head', nn.Module()).named_modules():
                if hasattr(part, 'predict_by_feat'):
                    method = self._first_decides(path, part.predict_by_feat, number)
                    self._stack.enter_context(replaced(part, 'predict_by_feat', method))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def runs(self, data: Any) -> list[Callable[[], Any]]:
        """Return the passes of the dense and of the slimmed model over a batch; the dense one goes first."""
        proposals: dict[str, Any] = {}
        return [self._run(forward, data, proposals) for forward in self._forwards]

    def _run(self, forward: Callable[[Any], Any], data: Any, proposals: dict[str, Any]) -> Callable[[], Any]:
        def run() -> Any:
            self._here.proposals = proposals
            # Models change data samples in place.
            return forward({**data, 'data_samples': copy.deepcopy(data.get('data_samples'))}
                           if isinstance(data, dict) else data)
        return run

    def _first_decides(self, path: str, method: Callable[..., Any], number: int) -> Callable[..., Any]:
        def predict(*args: Any, **kwargs: Any) -> Any:
            known = getattr(self._here, 'proposals', None)
            if known is None:
                return method(*args, **kwargs)
            if number == 0:
                known[path] = method(*args, **kwargs)
            return copy.deepcopy(known[path])
        return predict
