"""Passes of torchvision's detectors in which every layer runs and no score decides.

Such a detector resizes the images that it gets, picks proposals by sorted scores and suppresses overlapping boxes. Here
the images stay as large as they are, the second stage looks at given boxes, and the outputs are what the heads compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.units.passes.regions import Regions, replaced, spread_boxes

_PACKAGE = 'torchvision.models.detection.'
# Sides of the boxes that are looked at when layers are followed: one for each level of a usual pyramid, whatever the
# size of the image; what lies outside of it is 0.
_SIDES = (32., 120., 240., 480.)
_HEADS = ('box_predictor', 'mask_predictor', 'keypoint_predictor')
_KEYPOINTS = 17


def is_detector(model: nn.Module) -> bool:
    """Whether a model is one of torchvision's detectors, or derives from one."""
    return any(cls.__module__.startswith(_PACKAGE) for cls in type(model).__mro__) and hasattr(model, 'transform')


def stated_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the ``(H, W)`` that a detector brings all images to (SSD), ``None`` where it keeps their proportions."""
    width_height = model.transform.fixed_size if is_detector(model) else None
    return None if width_height is None else (width_height[1], width_height[0])


def regions_of(model: nn.Module) -> Regions | None:
    """Return the regions that a two-stage detector keeps in a test, ``None`` for other models."""
    if not is_detector(model) or not hasattr(model, 'roi_heads'):
        return None
    proposals, detections = model.rpn._post_nms_top_n['testing'], model.roi_heads.detections_per_img
    more = any(getattr(model.roi_heads, name, None) is not None for name in _HEADS[1:])
    return Regions(proposals, min(proposals, detections) if more else 0)


def eval_pass(regions: Regions | None = None) -> Callable[[nn.Module, Tensor], list[Any]]:
    """Return ``run(model, images)``, which gives what the heads of a detector compute.

    Args:
        regions: How many boxes an image its second stage looks at; by default one of each size.
    """
    def run(model: nn.Module, images: Tensor) -> list[Any]:
        seen: list[Any] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(_unscaled(model))
            stack.enter_context(replaced(model.transform, 'postprocess', lambda result, *_: result))
            for head in _heads(model):
                stack.callback(head.register_forward_hook(lambda module, args, out: seen.append(out)).remove)
            if hasattr(model, 'roi_heads'):
                boxes, found = ([box.to(images) for box in each] for each in _given(images, regions))
                stack.enter_context(replaced(model.rpn, 'filter_proposals', lambda *_: (boxes, _ones(boxes))))
                stack.enter_context(replaced(model.roi_heads, 'postprocess_detections', lambda *_: (
                    found, _ones(found), [scores.long() for scores in _ones(found)])))
            else:
                stack.enter_context(replaced(model, 'postprocess_detections', lambda *_: []))
            model(list(images))
        return seen
    return run


def training_pass(model: nn.Module, images: Tensor) -> Any:
    """Run a detector on images with a small and a large object in each; returns its losses."""
    height, width = images.shape[-2:]
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.4], [0.2, 0.3, 0.9, 0.95]]) * torch.tensor([width, height, width, height])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    points = torch.cat([centres, torch.ones(2, 1)], 1)[:, None].repeat(1, _keypoints(model), 1)
    targets = [{'boxes': boxes.to(images), 'labels': torch.ones(2, dtype=torch.long, device=images.device),
                'masks': masks.to(images.device), 'keypoints': points.to(images)} for _ in images]
    with _unscaled(model):
        return model(list(images), targets)


def _keypoints(model: nn.Module) -> int:
    """Return how many keypoints an object has: as many as the last layer of their head gives maps."""
    predictor = getattr(getattr(model, 'roi_heads', None), 'keypoint_predictor', None)
    layers = [] if predictor is None else [part for part in predictor.modules() if hasattr(part, 'out_channels')]
    return layers[-1].out_channels if layers else _KEYPOINTS


def _unscaled(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    return replaced(model.transform, 'resize', lambda image, target=None: (image, target))


def _heads(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that compute what a detector decides by."""
    if not hasattr(model, 'roi_heads'):
        yield model.head
        return
    yield model.rpn.head
    for name in _HEADS:
        head = getattr(model.roi_heads, name, None)
        if head is not None:
            yield head


def _given(images: Tensor, regions: Regions | None) -> tuple[list[Tensor], list[Tensor]]:
    """Return the boxes that the second stage looks at, and those of them that masks and keypoints are looked for in."""
    if regions is None:
        boxes = torch.tensor([[4., 4., 4 + side, 4 + side] for side in _SIDES])
        return [boxes] * len(images), [boxes] * len(images)
    boxes = spread_boxes(regions.proposals, tuple(images.shape[-2:]))
    return [boxes] * len(images), [boxes[:regions.masks]] * len(images)


def _ones(boxes: list[Tensor]) -> list[Tensor]:
    return [torch.ones(len(box), device=box.device) for box in boxes]
