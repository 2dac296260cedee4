"""Sizes that modules store apart from their layers, set anew from the slimmed layers.

By class name, so that the task libraries need not be installed; classes of several libraries may share a name. A
size is put in the place of the old one, never written into a list that is there: forms of a model share these.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn


class Widths(int):
    """The one width that a module compares with those of its inputs, where these have come to differ."""

    def __new__(cls, widths: Iterable[int]) -> Widths:
        found = set(widths)
        width = super().__new__(cls, max(found))
        width.found = frozenset(found)
        return width

    def __reduce__(self) -> tuple[Any, ...]:
        return Widths, (tuple(self.found),)

    def __eq__(self, other: object) -> bool:
        return other in self.found

    def __ne__(self, other: object) -> bool:
        return other not in self.found

    __hash__ = int.__hash__


def _bottle2neck(block: nn.Module) -> None:
    block.width = block.conv1.out_channels // (block.scales if hasattr(block, 'scales') else block.scale)


def _norms_of_outputs(backbone: nn.Module) -> None:
    if not isinstance(backbone.num_features, (list, tuple)):
        return  # of another library
    norms = [getattr(backbone, f'norm{i}', None) for i in range(len(backbone.num_features))]
    backbone.num_features = [norm.normalized_shape[0] if isinstance(norm, nn.LayerNorm) else width
                             for norm, width in zip(norms, backbone.num_features)]


def _channel_attention(attention: nn.Module) -> None:
    attention.embed_dims = attention.proj.in_features
    attention.head_dims = attention.embed_dims // attention.num_heads


def _davit_down_sample(layer: nn.Module) -> None:
    # It pads the channels, as if they were columns of an image, to an even number: that of the dense model.
    if layer.norm.normalized_shape[0] % layer.projection.stride[0]:
        layer.adaptive_padding = None


def _relative_attention(attention: nn.Module) -> None:
    attention.head_dim = attention.merge.in_features // attention.n_heads


def _rsb(block: nn.Module) -> None:
    block.branch_channels = block.conv_bn_relu1.conv.out_channels // block.num_steps


def _vit_sam(backbone: nn.Module) -> None:
    backbone.embed_dims = backbone.layers[0].ln1.normalized_shape[0]


def _van_block(block: nn.Module) -> None:
    block.out_channels = block.norm2.num_features


def _gn_conv(conv: nn.Module) -> None:
    conv.dims = [*(proj.in_channels for proj in conv.projs), conv.proj_out.in_channels]


def _sdta_encoder(encoder: nn.Module) -> None:
    parts = [conv.in_channels for conv in encoder.conv_modules]
    encoder.conv_channels = [*parts, encoder.norm_csa.normalized_shape[0] - sum(parts)]


def _leattention(attention: nn.Module) -> None:
    joint = attention.qkv if hasattr(attention, 'qkv') else attention.kv
    made, read = (next(layer for layer in part.modules() if isinstance(layer, nn.Linear))
                  for part in (joint, attention.proj))
    attention.dh = read.in_features
    attention.d = attention.dh // attention.num_heads
    keys = made.out_features // attention.num_heads - attention.d
    attention.key_dim = keys // 2 if hasattr(attention, 'qkv') else keys
    if hasattr(attention, 'val_dim'):  # timm's
        attention.val_dim, attention.val_attn_dim = attention.d, attention.dh
        attention.key_attn_dim = attention.key_dim * attention.num_heads


def _width_of_heads(attention: nn.Module) -> None:
    read = attention.proj
    width = read.in_features if isinstance(read, nn.Linear) else read.in_channels
    attention.dim_head = width // attention.num_heads


def _cross_stage(stage: nn.Module) -> None:
    stage.expand_chs = stage.conv_exp.conv.out_channels


def _channel_weighting(block: nn.Module) -> None:
    block.cross_resolution_weighting.channels = [conv.conv.in_channels for conv in block.depthwise_convs]


def _adaptive_context(module: nn.Module) -> None:
    module.channels = module.pooled_redu_conv.conv.out_channels


def _generic_roi_extractor(extractor: nn.Module) -> None:
    if extractor.with_pre and extractor.aggregation == 'sum':
        extractor.out_channels = extractor.pre_module.conv.out_channels


def _mspn_head(head: nn.Module) -> None:
    head.unit_channels = Widths(layer.conv_layers[0].conv.in_channels for layer in head.predict_layers)


def _absolute_positions(embedding: nn.Module) -> None:
    embedding.pos_dim = embedding.pos_embed.shape[-1]


def _vision_transformer(network: nn.Module) -> None:
    network.hidden_dim = network.class_token.shape[-1]


def _unflatten(module: nn.Module) -> None:
    # Maps of any number of channels: the places of each are as many as before.
    sizes = module.unflattened_size
    if all(isinstance(size, int) and size > 0 for size in sizes):
        module.unflattened_size = (-1, *sizes[1:])


# By class name: an attribute that tells the class from others of its name, and what sets its sizes anew.
STORED: dict[str, tuple[str, Callable[[nn.Module], None]]] = {
    'ACM': ('channels', _adaptive_context),
    'AbsolutePositionEmbedding': ('pos_dim', _absolute_positions),
    'Attention': ('key_dim', _leattention),
    'Attention2d': ('dim_head', _width_of_heads),
    'AttentionCl': ('dim_head', _width_of_heads),
    'AttentionDownsample': ('key_dim', _leattention),
    'AttentionSubsample': ('key_dim', _leattention),
    'Bottle2neck': ('width', _bottle2neck),
    'ChannelAttention': ('head_dims', _channel_attention),
    'ConditionalChannelWeighting': ('cross_resolution_weighting', _channel_weighting),
    'CrossStage': ('expand_chs', _cross_stage),
    'DaViT': ('num_features', _norms_of_outputs),
    'DaViTDownSample': ('adaptive_padding', _davit_down_sample),
    'GenericRoIExtractor': ('with_pre', _generic_roi_extractor),
    'LeAttention': ('key_dim', _leattention),
    'MSPNHead': ('unit_channels', _mspn_head),
    'RSB': ('branch_channels', _rsb),
    'RelativePositionalMultiHeadAttention': ('head_dim', _relative_attention),
    'SDTAEncoder': ('conv_channels', _sdta_encoder),
    'SwinTransformer': ('num_features', _norms_of_outputs),
    'Unflatten': ('unflattened_size', _unflatten),
    'VANBlock': ('out_channels', _van_block),
    'ViTSAM': ('embed_dims', _vit_sam),
    'VisionTransformer': ('hidden_dim', _vision_transformer),
    'gnConv': ('dims', _gn_conv),
}


def renew_sizes(model: nn.Module) -> None:
    """Set all stored sizes of a slimmed model anew."""
    for module in model.modules():
        telling, renew = STORED.get(type(module).__name__, ('', None))
        if renew is not None and hasattr(module, telling):
            renew(module)
