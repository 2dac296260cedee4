"""The networks that benchmarks and docs/prunable.md report on, by the configs they come from.

Names with "::" are configs that mmpretrain, mmdet, mmseg and mmpose ship; the others lie in this
repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmengine.config import Config

from mmprune_ext.cli.errors import fail
from mmprune_ext.settings import reading

ROOT = Path(__file__).resolve().parents[1]

ZOO: Mapping[str, str] = MappingProxyType({
    'ResNet-18': 'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    'ResNet-50': 'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    'VGG-16': 'mmpretrain::vgg/vgg16_8xb32_in1k.py',
    'VGG-16-BN': 'mmpretrain::vgg/vgg16bn_8xb32_in1k.py',
    'MobileNetV2': 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'ShuffleNetV2': 'mmpretrain::shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py',
    'DenseNet-121': 'mmpretrain::densenet/densenet121_4xb256_in1k.py',
    'ResNeXt-50': 'mmpretrain::resnext/resnext50-32x4d_8xb32_in1k.py',
    'SE-ResNet-50': 'mmpretrain::seresnet/seresnet50_8xb32_in1k.py',
    'RegNetX-400MF': 'mmpretrain::regnet/regnetx-400mf_8xb128_in1k.py',
    'EfficientNet-B0': 'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py',
    'HRNet-W18': 'mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py',
    'Res2Net-50': 'mmpretrain::res2net/res2net50-w14-s8_8xb32_in1k.py',
    'ResNeSt-50': 'mmpretrain::resnest/resnest50_32xb64_in1k.py',
    'CSPDarkNet-50': 'mmpretrain::cspnet/cspdarknet50_8xb32_in1k.py',
    'ConvNeXt-T': 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
    'ViT-S': 'mmpretrain::deit/deit-small_4xb256_in1k.py',
    'Swin-T': 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
})
CIFAR: Mapping[str, str] = MappingProxyType({
    'ResNet-20 (CIFAR)': 'configs/cifar/resnet20_cifar10.py',
    'ResNet-32 (CIFAR)': 'configs/cifar/resnet32_cifar10.py',
    'ResNet-44 (CIFAR)': 'configs/cifar/resnet44_cifar10.py',
    'ResNet-56 (CIFAR)': 'configs/cifar/resnet56_cifar10.py',
    'ResNet-110 (CIFAR)': 'configs/cifar/resnet110_cifar10.py',
    'PreResNet-110 (CIFAR)': 'configs/cifar/preresnet110_cifar10.py',
    'WRN-28-10 (CIFAR)': 'configs/cifar/wrn28_10_cifar10.py',
    'VGG-16-BN (CIFAR)': 'configs/cifar/vgg16bn_cifar10.py',
})
_POSE = 'mmpose::body_2d_keypoint'
_HEATMAP = f'{_POSE}/topdown_heatmap/coco/td-hm'
TASKS: Mapping[str, str] = MappingProxyType({
    'RetinaNet-R18': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'Faster R-CNN R50-FPN': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN R50-FPN': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'FCOS R50': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'RTMDet-tiny': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'YOLOX-tiny': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'FCN R50-D8': 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'PSPNet R50-D8': 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'DeepLabV3+ R50-D8': 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'UPerNet R50': 'mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py',
    'PointRend R50': 'mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',
    'SegFormer-B0': 'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
    'Pose ResNet-50': f'{_HEATMAP}_res50_8xb64-210e_coco-256x192.py',
    'Pose HRNet-W32': f'{_HEATMAP}_hrnet-w32_8xb64-210e_coco-256x192.py',
    'SimCC ResNet-50': f'{_POSE}/simcc/coco/simcc_res50_8xb64-210e_coco-256x192.py',
    'RTMPose-tiny': f'{_POSE}/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py',
})
MORE_TASKS: Mapping[str, str] = MappingProxyType({
    'Faster R-CNN R50-DCN': 'mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'Cascade Mask R-CNN R50': 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'HTC R50': 'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'ATSS R50': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'GFL R50': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'TOOD R50': 'mmdet::tood/tood_r50_fpn_1x_coco.py',
    'VFNet R50': 'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'PAA R50': 'mmdet::paa/paa_r50_fpn_1x_coco.py',
    'YOLOF R50': 'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'YOLOv3': 'mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py',
    'SSD300': 'mmdet::ssd/ssd300_coco.py',
    'CenterNet R18-DCN': 'mmdet::centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py',
    'CornerNet': 'mmdet::cornernet/cornernet_hourglass104_32xb3-210e-mstest_coco.py',
    'RepPoints R50': 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py',
    'Sparse R-CNN R50': 'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'DETR R50': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'Deformable DETR R50': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO R50': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'SOLOv2 R50': 'mmdet::solov2/solov2_r50_fpn_1x_coco.py',
    'CondInst R50': 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'RTMDet-Ins-tiny': 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'Mask2Former R50': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'OCRNet HR18': 'mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py',
    'Semantic FPN R50': 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
    'BiSeNetV2': 'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
    'STDC1': 'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
    'Fast-SCNN': 'mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py',
    'PIDNet-S': 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
    'UNet': 'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py',
    'K-Net R50': 'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
    'SegNeXt-T': 'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    'Pose MobileNetV2': f'{_HEATMAP}_mobilenetv2_8xb64-210e_coco-256x192.py',
    'Pose ShuffleNetV2': f'{_HEATMAP}_shufflenetv2_8xb64-210e_coco-256x192.py',
    'Pose LiteHRNet-18': f'{_HEATMAP}_litehrnet-18_8xb64-210e_coco-256x192.py',
    'Pose VGG-16-BN': f'{_HEATMAP}_vgg16-bn_8xb64-210e_coco-256x192.py',
    'Pose Hourglass-52': f'{_HEATMAP}_hourglass52_8xb32-210e_coco-256x256.py',
    'Pose MSPN-50': f'{_HEATMAP}_mspn50_8xb32-210e_coco-256x192.py',
    'ViTPose-S': f'{_HEATMAP}_ViTPose-small_8xb64-210e_coco-256x192.py',
    'RLE ResNet-50': f'{_POSE}/topdown_regression/coco/td-reg_res50_rle-8xb64-210e_coco-256x192.py',
    'Integral pose ResNet-50': f'{_POSE}/integral_regression/coco/ipr_res50_8xb64-210e_coco-256x256.py',
    'RTMO-S': f'{_POSE}/rtmo/coco/rtmo-s_8xb32-600e_coco-640x640.py',
    'CID HRNet-W32': f'{_POSE}/cid/coco/cid_hrnet-w32_8xb20-140e_coco-512x512.py',
    'DEKR HRNet-W32': f'{_POSE}/dekr/coco/dekr_hrnet-w32_8xb10-140e_coco-512x512.py',
})
FAMILIES: Mapping[str, Mapping[str, Any]] = json.loads((ROOT / 'benchmarks' / 'zoo_families.json').read_text())[
    'families']
# Networks of libraries without configs, torchvision and timm: what builds them.
BUILT: Mapping[str, Mapping[str, Any]] = {name: family for name, family in FAMILIES.items() if 'builder' in family}
NETWORKS: Mapping[str, str] = MappingProxyType({**ZOO, **CIFAR, **TASKS, **MORE_TASKS})


def source(family: Mapping[str, Any]) -> str:
    """Return the config that a family of the zoos comes from, or the call that builds it."""
    if 'config' in family:
        return family['config']
    arguments = ', '.join(f'{key}={value!r}' for key, value in family.get('arguments', {}).items())
    return f'{family["builder"]}({arguments})'


def built(family: Mapping[str, Any], scope: str = 'all') -> Config:
    """Return the config of a model that a function or class builds, with the size to trace it on.

    Where ``scope`` is the backbone, a network of timm is that of a classifier of mmpretrain.
    """
    model = {'type': family['builder'], **family.get('arguments', {})}
    config = Config({'model': model})
    if scope == 'backbone':
        backbone = {**model, 'type': 'TIMMBackbone'}
        config = Config({'model': {'type': 'ImageClassifier', 'backbone': backbone}, 'default_scope': 'mmpretrain'})
    if 'size' in family:
        config.demo_inputs = family['size']
    return config


def read(name: str) -> Config:
    """Return the config of a network."""
    if name in BUILT:
        return built(BUILT[name])
    path = NETWORKS[name]
    return reading.read_config(path if '::' in path else str(ROOT / path))


def select(wanted: list[str] | None, default: Iterable[str] = NETWORKS, among: Iterable[str] = NETWORKS) -> list[str]:
    """Return the names of the networks ``among`` all whose name begins with one of ``wanted``, or the default."""
    if wanted is None:
        return list(default)
    unknown = [w for w in wanted if not any(n.lower().startswith(w.lower()) for n in among)]
    if unknown:
        fail(f'unknown network "{unknown[0]}"; choose from {", ".join(among)}')
    return [n for n in among if any(n.lower().startswith(w.lower()) for w in wanted)]
