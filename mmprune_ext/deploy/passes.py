"""What of a model is exported: its inference pass as tensors in, tensors out, and what the outputs mean."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mmprune_ext.errors import ConfigError
from mmprune_ext.units.demo_inputs import is_openmmlab
from mmprune_ext.units.task_samples import data_samples, library_of, regions_of, tensor_pass

Run = Callable[[nn.Module, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Plan:
    """The pass of a model that is exported.

    Attributes:
        task: ``classification``, ``detection``, ``segmentation``, ``pose``, or ``other``.
        run: Takes the model and images ``(N, C, H, W)``, returns the outputs.
        outputs: Name of each output -> what it is, in words.
        decoding: Settings of :mod:`mmprune_ext.deploy.decoding`; of type ``raw`` where it does not know the outputs.
    """

    task: str
    run: Run
    outputs: Mapping[str, str]
    decoding: Mapping[str, Any]


class InferencePass(nn.Module):
    """A plan on its model, as a module that the exporters take.

    Args:
        model: The model, on the CPU and in eval mode. It is copied, without the parts that the pass does not use
            (auxiliary heads).
        plan: The pass.
        images: What to find these parts on, ``(N, C, H, W)``.
    """

    def __init__(self, model: nn.Module, plan: Plan, images: Tensor) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self._run = plan.run
        self._drop_unused(images)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, in the order of the plan's."""
        return self._run(self.model, images)

    def _drop_unused(self, images: Tensor) -> None:
        used: set[nn.Module] = set()
        hooks = [module.register_forward_hook(lambda module, *_: used.add(module)) for module in self.model.modules()]
        try:
            with torch.no_grad():
                self(images)
        finally:
            for hook in hooks:
                hook.remove()
        for name, child in list(self.model.named_children()):
            if any(True for _ in child.parameters()) and used.isdisjoint(child.modules()):
                delattr(self.model, name)


def plan_of(model: nn.Module, images: Tensor) -> Plan:
    """Return what of a model is exported.

    Args:
        model: The model, on the CPU and in eval mode.
        images: An example of its inputs, ``(N, C, H, W)``.

    Raises:
        ConfigError: If the model needs more than one pass of tensors.
    """
    library = library_of(model)
    name = type(model).__name__
    if regions_of(model) is not None:
        raise ConfigError(
            f'{name} is a two-stage detector: its second stage looks at regions that the first one finds, another '
            'number in every image, and RoIAlign is an operator of mmcv that torch.export cannot follow. Not possible: '
            'a file of fixed or dynamic size. Deploy a one-stage detector (RetinaNet, FCOS, ATSS, SSD, RTMDet), or run '
            'the compact model in PyTorch')
    if library == 'mmseg' and hasattr(model, 'num_stages'):
        raise ConfigError(f'{name} refines its maps in stages at points that the maps themselves choose, which is no '
                          'pass of a fixed form; deploy an EncoderDecoder, or run the compact model in PyTorch')
    maker = _MAKERS.get(library)
    return (maker and maker(model, images)) or _raw(model, images)


def _classification(model: nn.Module, images: Tensor) -> Plan | None:
    from mmpretrain.models.classifiers import ImageClassifier
    from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
    head = getattr(model, 'head', None)
    several = isinstance(head, MultiLabelClsHead)
    if not isinstance(model, ImageClassifier) or not (several or isinstance(head, ClsHead)):
        return None
    return Plan('classification', lambda m, images: (m.head(m.extract_feat(images)), ),
                {'logits': '(N, classes), before ' + ('a sigmoid' if several else 'the softmax')},
                {'type': 'class', 'activation': 'sigmoid' if several else 'softmax'})


def _detection(model: nn.Module, images: Tensor) -> Plan | None:
    head = getattr(model, 'bbox_head', None)
    suppression = dict((getattr(model, 'test_cfg', None) or {}).get('nms') or {})
    if not _is_dense(model) or suppression.pop('type', 'nms') != 'nms' \
            or not suppression.keys() <= {'iou_threshold', 'class_agnostic'}:
        return None
    with torch.no_grad():
        scores, _, *factors = head(model.extract_feat(images))
    levels, with_factors = len(scores), bool(factors)
    outputs = {}
    for level in range(levels):
        outputs[f'scores_{level}'] = '(N, priors, classes) of one level, from 0 to 1'
        outputs[f'boxes_{level}'] = '(N, priors, 4): left, top, right, bottom in pixels of the input'
        if with_factors:
            outputs[f'factors_{level}'] = '(N, priors), by which scores are multiplied'
    settings = head.test_cfg
    return Plan('detection', _run_dense, outputs, {
        'type': 'boxes', 'levels': levels, 'factors': with_factors,
        'score_threshold': settings.get('score_thr', 0), 'per_level': max(settings.get('nms_pre', 0), 0),
        'clip': bool(getattr(head.bbox_coder, 'clip_border', True)), 'min_size': settings.get('min_bbox_size', -1),
        'iou_threshold': suppression.get('iou_threshold', 0.5),
        'class_agnostic': bool(suppression.get('class_agnostic', False)),
        'max_per_image': settings.get('max_per_img', 0)})


def _is_dense(model: nn.Module) -> bool:
    """Whether a detector reads its boxes off dense maps in mmdet's usual way, which the numpy decoding follows."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors import SingleStageDetector
    head, usual = getattr(model, 'bbox_head', None), ('predict', 'predict_by_feat', '_predict_by_feat_single',
                                                      '_bbox_post_process')
    return (isinstance(model, SingleStageDetector) and isinstance(head, BaseDenseHead)
            and type(model).predict is SingleStageDetector.predict
            and all(getattr(type(head), name) is getattr(BaseDenseHead, name) for name in usual)
            and getattr(head.bbox_coder, 'encode_size', None) == 4
            and not getattr(getattr(head, 'loss_cls', None), 'custom_cls_channels', False))


def _run_dense(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    head, number = model.bbox_head, images.shape[0]
    scores, boxes, *factors = head(model.extract_feat(images))
    priors = head.prior_generator.grid_priors([level.shape[-2:] for level in scores], dtype=scores[0].dtype,
                                              device=scores[0].device)
    outputs = []
    for level, prior in enumerate(priors):
        logits = scores[level].permute(0, 2, 3, 1).reshape(number, -1, head.cls_out_channels)
        outputs.append(logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1])
        deltas = boxes[level].permute(0, 2, 3, 1).reshape(-1, 4)
        # Coders take one list of boxes; that of all images is as long as the priors repeated.
        outputs.append(head.bbox_coder.decode(prior.repeat(number, 1), deltas).reshape(number, -1, 4))
        if factors:
            outputs.append(factors[0][level].permute(0, 2, 3, 1).reshape(number, -1).sigmoid())
    return tuple(outputs)


def _segmentation(model: nn.Module, images: Tensor) -> Plan | None:
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder
    head = getattr(model, 'decode_head', None)
    if not isinstance(model, EncoderDecoder) or not isinstance(head, BaseDecodeHead) or any(
            getattr(type(head), name) is not getattr(BaseDecodeHead, name) for name in ('predict', 'predict_by_feat')):
        return None
    return Plan('segmentation', _run_segmentor,
                {'logits': '(N, classes, H, W) in the size of the input, before the softmax'},
                {'type': 'labels', 'align_corners': bool(head.align_corners), 'threshold': head.threshold})


def _run_segmentor(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    logits = model.decode_head(model.extract_feat(images))
    # Not mmseg's resize, which looks at the sizes as integers and so fixes them.
    return (nn.functional.interpolate(logits, size=images.shape[2:], mode='bilinear',
                                      align_corners=model.decode_head.align_corners), )


def _pose(model: nn.Module, images: Tensor) -> Plan | None:
    from mmpose.codecs import MSRAHeatmap, SimCCLabel
    from mmpose.models.pose_estimators import TopdownPoseEstimator
    codec = getattr(getattr(model, 'head', None), 'decoder', None)
    if not isinstance(model, TopdownPoseEstimator):
        return None
    if type(codec) is MSRAHeatmap and not codec.unbiased:
        return Plan('pose', lambda m, images: (m.head.forward(m.extract_feat(images)), ),
                    {'heatmaps': '(N, keypoints, h, w)'},
                    {'type': 'heatmaps', 'stride': [float(step) for step in codec.scale_factor]})
    if type(codec) is SimCCLabel and not codec.use_dark and not codec.decode_visibility:
        return Plan('pose', lambda m, images: tuple(m.head.forward(m.extract_feat(images))),
                    {'simcc_x': '(N, keypoints, steps along the width)',
                     'simcc_y': '(N, keypoints, steps along the height)'},
                    {'type': 'simcc', 'split_ratio': float(codec.simcc_split_ratio)})
    return None


def _raw(model: nn.Module, images: Tensor) -> Plan:
    """Return a plan of what the model's forward gives, whatever that is."""
    run = tensor_pass(model, data_samples(model, images)) if is_openmmlab(model) else lambda m, batch: m(batch)

    def flat(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for value in tree_flatten(run(model, images))[0] if isinstance(value, Tensor))

    with torch.no_grad():
        found = flat(model, images)
    parts = [type(part).__name__ for part in (getattr(model, name, None) for name in _HEADS) if part is not None]
    return Plan('other', flat, {f'output_{i}': f'{tuple(value.shape)} for images {tuple(images.shape)}'
                                for i, value in enumerate(found)},
                {'type': 'raw', 'reason': f'{" with ".join([type(model).__name__, *parts])} has no decoding in numpy'})


_HEADS = ('head', 'bbox_head', 'decode_head')
_MAKERS: dict[str | None, Callable[[nn.Module, Tensor], Plan | None]] = {
    'mmpretrain': _classification, 'mmdet': _detection, 'mmseg': _segmentation, 'mmpose': _pose}
