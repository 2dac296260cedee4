"""Ground truth for demo inputs: data samples as each task library packs them.

Models of mmdet, mmseg and mmpose need them even to run forward (image sizes), and their losses reach
layers that nothing else does (auxiliary heads, points, masks).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprune_ext.errors import PruningError, TraceError
from mmprune_ext.units.passes import detectors
from mmprune_ext.units.passes.regions import Regions, replaced, spread_boxes

Samples = list[Any]
ImagePass = Callable[[nn.Module, Tensor], Any]


def library_of(model: nn.Module) -> str | None:
    """Return the task library that a model's class, or a class it derives from, belongs to."""
    for cls in type(model).__mro__:
        name = cls.__module__.split('.')[0]
        if name in _MAKERS:
            return name
    return None


def data_samples(model: nn.Module, images: Tensor) -> Samples | None:
    """Return one data sample with ground truth an image, ``None`` for a model of no task library.

    Args:
        model: The model; pose estimators state by their codec what their targets look like.
        images: ``(N, C, H, W)``.

    Raises:
        TraceError: If the model states what it is trained on in another way than its library's usual.
    """
    library = library_of(model)
    try:
        return None if library is None else _MAKERS[library](model, images)
    except PruningError:
        raise
    except Exception as error:  # reads what models of any kind may hold, and runs their codecs
        raise TraceError(
            f'no demo ground truth can be made for {type(model).__name__} on images of '
            f'{tuple(images.shape[1:])}: {type(error).__name__}: {error}. Give demo_inputs: a '
            'function that runs the model, dict(type=...) in a config') from error


def regions_of(model: nn.Module) -> Regions | None:
    """Return the regions that a two-stage detector keeps in a test, ``None`` for other models.

    Of mmdet's they are ``rpn.max_per_img`` and ``rcnn.max_per_img`` of ``test_cfg``; where these are not stated, the
    1000 and 100 of mmdet's base configs.
    """
    if not _is_two_stage(model):
        return detectors.regions_of(model)
    stages = [(getattr(model, 'test_cfg', None) or {}).get(name) or {} for name in ('rpn', 'rcnn')]
    proposals, detections = (int(stage.get('max_per_img', default))
                             for stage, default in zip(stages, (1000, 100)))
    with_mask = bool(getattr(model.roi_head, 'with_mask', False))
    return Regions(proposals, min(proposals, detections) if with_mask else 0)


def _is_two_stage(model: nn.Module) -> bool:
    """Whether a detector's proposals come from scores, so that others can be given instead."""
    heads = [getattr(model, name, None) for name in ('rpn_head', 'roi_head')]
    return (library_of(model) == 'mmdet' and all(isinstance(h, nn.Module) for h in heads)
            and any(hasattr(part, 'predict_by_feat') for part in heads[0].modules()))


def tensor_pass(model: nn.Module, samples: Samples | None, regions: Regions | None = None,
                ) -> ImagePass:
    """Return ``run(model, images)``: heads included, post-processing left out where it can be.

    The proposals of a two-stage detector are given ones. Its own would be sorted and thresholded by
    scores of untrained heads: rounding alone would change them, and with them all that follows.

    Args:
        model: An OpenMMLab model.
        samples: Its data samples.
        regions: How many proposals and masks an image; by default the boxes of the ground truth.
    """
    if _is_two_stage(model):
        return _two_stage_pass(samples, regions)
    return samples_pass(samples, 'predict' if _needs_samples(model) else 'tensor')


def _needs_samples(model: nn.Module) -> bool:
    """Whether a segmentor's or pose estimator's head has no forward without data samples and post-processing."""
    if library_of(model) not in ('mmseg', 'mmpose'):
        return False
    cascade = library_of(model) == 'mmseg' and hasattr(model, 'num_stages')
    heads = (getattr(model, name, None) for name in ('decode_head', 'head'))
    return cascade or any('batch_data_samples' in inspect.signature(head.forward).parameters
                          for head in heads if isinstance(head, nn.Module))


def samples_pass(samples: Samples | None, mode: str) -> ImagePass:
    """Return ``run(model, images)`` in one of the modes of OpenMMLab's models."""
    # Models change samples in place (predictions, boxes without masks): each run gets its own.
    return lambda model, images: model(_packed(model, images), copy.deepcopy(samples), mode=mode)


def _packed(model: nn.Module, images: Tensor) -> Any:
    """Return images as a model's ``forward`` takes them; CLRNet's data preprocessor gives it a dict."""
    return {'img': images} if type(model).__name__ == 'CLRNet' else images


def _two_stage_pass(samples: Samples, regions: Regions | None) -> ImagePass:
    def run(model: nn.Module, images: Tensor) -> Any:
        boxes = [sample.gt_instances.bboxes.clone() if regions is None
                 else spread_boxes(regions.proposals, sample.img_shape)
                 for sample in samples]
        boxes = [box.to(images) for box in boxes]
        seen: list[Any] = []
        with contextlib.ExitStack() as stack:
            for part in model.rpn_head.modules():
                if hasattr(part, 'predict_by_feat'):
                    stack.enter_context(replaced(part, 'predict_by_feat',
                                                  _given_proposals(boxes, seen)))
            if regions is not None and regions.masks:
                head = model.roi_head
                stack.enter_context(replaced(head, '_mask_forward', _masks_on(
                    head._mask_forward, [box[:regions.masks] for box in boxes])))
            return seen, model(images, copy.deepcopy(samples), mode='tensor')
    return run


def _given_proposals(boxes: list[Tensor], seen: list[Any]) -> Callable[..., Any]:
    """Return a method that collects what the RPN computed, and proposes the given boxes."""
    def predict_by_feat(*outputs: Any, **_: Any) -> Any:
        from mmengine.structures import InstanceData
        seen.append(outputs)
        return [InstanceData(bboxes=box, scores=torch.ones(len(box), device=box.device),
                             labels=torch.zeros(len(box), dtype=torch.long, device=box.device))
                for box in boxes]
    return predict_by_feat


def _masks_on(method: Callable[..., Any], boxes: list[Tensor]) -> Callable[..., Any]:
    """Return mmdet's ``_mask_forward`` on other regions than those it is called with.

    mmdet's forward runs masks on the first 100 proposals of a whole batch, or on all of them; detection
    runs them on what is left in each image. The caller gets as many results as it expects.
    """
    def mask_forward(*args: Any, **kwargs: Any) -> Any:
        from mmdet.structures.bbox import bbox2roi
        rois, expected = bbox2roi(boxes), 0
        places = list(args)
        for i, value in enumerate(args):
            if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == rois.shape[1]:
                places[i], expected = rois, len(value)
        results = method(*places, **kwargs)
        return {key: value[:1].expand(expected, *value.shape[1:])
                if expected and isinstance(value, Tensor) and len(value) == len(rois) else value
                for key, value in results.items()}
    return mask_forward


def _classification(model: nn.Module, images: Tensor) -> Samples:
    from mmpretrain.structures import DataSample
    return [DataSample(metainfo={'img_shape': tuple(images.shape[-2:])}).set_gt_label(0)
            for _ in images]


def _image_metainfo(images: Tensor, number: int) -> dict[str, Any]:
    size = tuple(images.shape[-2:])
    return {'img_id': number, 'img_path': '', 'img_shape': size, 'ori_shape': size,
            'pad_shape': size, 'batch_input_shape': size, 'scale_factor': (1.0, 1.0),
            'flip': False, 'flip_direction': None, 'padding_size': (0, 0, 0, 0)}


def _detection(model: nn.Module, images: Tensor) -> Samples:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData
    height, width = images.shape[-2:]
    # Some detectors take masks, if there are any, for those of instance segmentation.
    with_masks = any('mask' in path for path, _ in model.named_modules())
    samples = []
    for number in range(len(images)):
        # A small and a large object, so that every level of a pyramid has something to learn.
        boxes = torch.tensor([[0.1, 0.1, 0.3, 0.4], [0.2, 0.3, 0.9, 0.95]])
        boxes = boxes * torch.tensor([width, height, width, height])
        masks = np.zeros((2, height, width), dtype=np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
            mask[top:bottom, left:right] = 1
        sample = DetDataSample(metainfo=_image_metainfo(images, number))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.zeros(2, dtype=torch.long))
        if with_masks:
            sample.gt_instances.masks = BitmapMasks(masks, height, width)
        sample.ignored_instances = InstanceData(bboxes=boxes[:0],
                                                labels=torch.zeros(0, dtype=torch.long))
        sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, height, width, dtype=torch.long))
        samples.append(sample)
    return samples


def _segmentation(model: nn.Module, images: Tensor) -> Samples:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    height, width = images.shape[-2:]
    labels = torch.zeros(1, height, width, dtype=torch.long)
    labels[:, height // 2:] = 1
    return [SegDataSample(metainfo=_image_metainfo(images, number),
                          gt_sem_seg=PixelData(data=labels.clone()))
            for number in range(len(images))]


def _codec(head: nn.Module) -> Any:
    """Return what makes the targets of a pose estimator's head.

    Heads that find several people hold none where they decode by their own code; their targets are instances.
    """
    from mmpose.codecs import YOLOXPoseAnnotationProcessor
    from mmpose.codecs.base import BaseKeypointCodec
    held = (value for value in vars(head).values() if isinstance(value, BaseKeypointCodec))
    return next(held, None) or YOLOXPoseAnnotationProcessor(expand_bbox=True)


def _pose(model: nn.Module, images: Tensor) -> Samples:
    from mmpose.datasets.transforms import PackPoseInputs
    height, width = images.shape[-2:]
    codec = _codec(model.head)
    wanted = tuple(getattr(codec, 'input_size', (width, height)))
    if wanted != (width, height):
        raise PruningError(f'an image of {height} x {width} (height x width) does not fit the codec of '
                           f'{type(model).__name__}, which is for {wanted[1]} x {wanted[0]}; give that '
                           'size, or change the input_size of the codec')
    counts = (getattr(model.head, name, None) for name in ('num_keypoints', 'num_joints'))
    count = next(filter(None, counts), None) or model.head.out_channels
    # Spread over the image, where every codec can encode them.
    steps = np.linspace(0.2, 0.8, count)
    keypoints = np.stack([steps * width, steps[::-1] * height], -1)[None].astype(np.float32)
    visible = np.ones((1, count), dtype=np.float32)
    box = np.array([[0, 0, width, height]], dtype=np.float32)
    area = np.array([0.5 * width * height], dtype=np.float32)
    known = {'bbox': box, 'bboxes': box, 'area': area, 'category_id': [1], 'img_shape': (width, height)}
    wanted_too = {key: known[key] for key in codec.auxiliary_encode_keys if key in known}
    encoded = codec.encode(keypoints=keypoints, keypoints_visible=visible, **wanted_too)
    tables = {f'{kind}_mapping_table': getattr(codec, f'{kind}_mapping_table')
              for kind in ('instance', 'label', 'field')
              if getattr(codec, f'{kind}_mapping_table', None)}
    samples = []
    for number in range(len(images)):
        meta = {**_image_metainfo(images, number), 'id': number, 'input_size': (width, height),
                'input_center': np.array([width / 2, height / 2], dtype=np.float32),
                'input_scale': np.array([width, height], dtype=np.float32),
                'flip_indices': list(range(count)), 'dataset_name': 'coco'}
        results = {'img': np.zeros((height, width, 3), dtype=np.uint8), 'keypoints': keypoints,
                   'keypoints_visible': visible,
                   'bbox': box, 'area': area,
                   'bbox_center': meta['input_center'][None],
                   'bbox_scale': meta['input_scale'][None],
                   'bbox_score': np.ones(1, dtype=np.float32), **encoded, **tables, **meta}
        packed = PackPoseInputs(meta_keys=tuple(meta))(results)
        samples.append(packed['data_samples'])
    return samples


_MAKERS: dict[str, Callable[[nn.Module, Tensor], Samples]] = {
    'mmpretrain': _classification, 'mmdet': _detection, 'mmseg': _segmentation, 'mmpose': _pose}
