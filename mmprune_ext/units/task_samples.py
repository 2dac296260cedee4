"""Ground truth for demo inputs: data samples as each task library packs them.

Models of mmdet, mmseg and mmpose need them even to run forward (image sizes), and their losses reach
layers that nothing else does (auxiliary heads, points, masks).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Samples = list[Any]


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
    """
    library = library_of(model)
    return None if library is None else _MAKERS[library](model, images)


def two_stage_pass(images: Tensor, samples: Samples) -> Callable[[nn.Module], Any]:
    """Return a forward pass of a two-stage detector on given proposals.

    Proposals of the detector's own would be sorted and thresholded by scores of untrained heads:
    rounding alone would change them, and with them all that follows.
    """
    def forward(model: nn.Module) -> Any:
        from mmengine.structures import InstanceData
        features = model.extract_feat(images)
        proposals = [InstanceData(bboxes=sample.gt_instances.bboxes.clone(),
                                  scores=torch.ones(len(sample.gt_instances.bboxes)),
                                  labels=torch.zeros(len(sample.gt_instances.bboxes)).long())
                     for sample in samples]
        first = model.rpn_head(features)
        return first, model.roi_head.forward(features, proposals, copy.deepcopy(samples))
    return forward


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


def _pose(model: nn.Module, images: Tensor) -> Samples:
    from mmpose.datasets.transforms import PackPoseInputs
    height, width = images.shape[-2:]
    codec = model.head.decoder
    count = getattr(model.head, 'num_keypoints', None) or model.head.out_channels
    # Spread over the image, where every codec can encode them.
    steps = np.linspace(0.2, 0.8, count)
    keypoints = np.stack([steps * width, steps[::-1] * height], -1)[None].astype(np.float32)
    visible = np.ones((1, count), dtype=np.float32)
    encoded = codec.encode(keypoints=keypoints, keypoints_visible=visible)
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
                   'bbox': np.array([[0, 0, width, height]], dtype=np.float32),
                   'bbox_center': meta['input_center'][None],
                   'bbox_scale': meta['input_scale'][None],
                   'bbox_score': np.ones(1, dtype=np.float32), **encoded, **tables, **meta}
        packed = PackPoseInputs(meta_keys=tuple(meta))(results)
        samples.append(packed['data_samples'])
    return samples


_MAKERS: dict[str, Callable[[nn.Module, Tensor], Samples]] = {
    'mmpretrain': _classification, 'mmdet': _detection, 'mmseg': _segmentation, 'mmpose': _pose}
