"""Which outputs of a model are compared with its teachers', and by what measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from mmprune_ext.distillation import losses
from mmprune_ext.errors import ConfigError
from mmprune_ext.units.task_samples import library_of

Tensors = Sequence[Tensor]
Loss = Callable[[Tensors, Sequence[Tensors], float], Tensor]


@dataclass(frozen=True)
class Output:
    """The kind of a part's outputs.

    Attributes:
        name: What its tensors are, for messages.
        pick: Takes the part's result, and gives the tensors that are compared.
        loss: Takes these of the student and of each teacher, and the temperature; gives a scalar.
        temperature: The default.
        resizable: Whether a teacher's maps may have another height and width.
    """

    name: str
    pick: Callable[[Any], list[Tensor]]
    loss: Loss
    temperature: float = 1.0
    resizable: bool = False


def default_outputs(model: nn.Module, maps: Sequence[str]) -> list[str]:
    """Return the paths of the heads whose outputs are compared if the user names none.

    Raises:
        ConfigError: If it depends on the user's choice, or there is no head.
    """
    if hasattr(model, 'roi_head'):
        if maps:
            return []
        raise _two_stages(model)
    for name in ('head', 'bbox_head', 'decode_head'):
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):  # a cascade, the last of which predicts
            return [f'{name}.{len(head) - 1}']
        if isinstance(head, nn.Module):
            return [name]
    if maps:
        return []
    raise ConfigError(f'{type(model).__name__} has no head, bbox_head or decode_head; name what is to be distilled: '
                      f'outputs or maps, of {", ".join(name for name, _ in model.named_children())}')


def chosen_outputs(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Return the paths of heads that the user names.

    Raises:
        ConfigError: If one predicts for proposals.
    """
    if any(path.split('.')[0] == 'roi_head' for path in paths):
        raise _two_stages(model)
    return list(paths)


def _two_stages(model: nn.Module) -> ConfigError:
    return ConfigError(
        f'{type(model).__name__} has two stages: what its second one predicts belongs to its own proposals, which a '
        "teacher does not share. What can be distilled: outputs=['rpn_head'], maps=['neck'], maps=['backbone']")


def output_of(head: nn.Module, path: str, result: Any) -> Output:
    """Return the kind of a head's outputs, by the head and what it has returned.

    Raises:
        ConfigError: If its outputs cannot be compared place by place.
    """
    library = library_of(head)
    found = {'mmdet': _detection, 'mmseg': _segmentation, 'mmpose': _pose}.get(library, _classification)(head, result)
    if found is None:
        raise ConfigError(
            f'outputs: {path} is a {type(head).__name__} and returned {described(result)}; distilled are logits of '
            'classes, class scores of detection heads that predict at fixed places, segmentation logits, heatmaps and '
            "SimCC axes. Distil its inputs: outputs=[], maps=['neck'] or maps=['backbone']")
    return found


def _classification(head: nn.Module, result: Any) -> Output | None:
    tensors = _flat(result)
    if not tensors or any(tensor.dim() != 2 for tensor in tensors):
        return None
    if any(cls.__name__ == 'MultiLabelClsHead' for cls in type(head).__mro__):
        return Output('logits of labels', _flat, partial(_each, losses.sigmoid_loss, summed=True), 5.0)
    return Output('logits of classes', _flat, partial(_each, losses.softmax_loss), 5.0)


def _detection(head: nn.Module, result: Any) -> Output | None:
    classes, sigmoid = (getattr(head, name, None) for name in ('cls_out_channels', 'use_sigmoid_cls'))
    levels = result[0] if isinstance(result, (list, tuple)) and result else None
    if not classes or sigmoid is None or not isinstance(levels, (list, tuple)) or not all(
            isinstance(level, Tensor) and level.dim() == 4 and level.shape[1] % classes == 0 for level in levels):
        return None

    return Output(f'{"sigmoid" if sigmoid else "softmax"} logits of {classes} classes', _levels,
                  partial(losses.dense_class_loss, classes=classes, sigmoid=bool(sigmoid)))


def _levels(result: Any) -> list[Tensor]:
    """Return the class scores of each level, which detection heads return first."""
    return list(result[0])


def _segmentation(head: nn.Module, result: Any) -> Output | None:
    tensors = _flat(result)
    if not tensors or any(tensor.dim() != 4 for tensor in tensors):
        return None
    single = tensors[0].shape[1] == 1
    loss = losses.sigmoid_loss if single else losses.softmax_loss
    return Output('logits of one class' if single else 'logits of classes', _flat, partial(_each, loss), resizable=True)


def _pose(head: nn.Module, result: Any) -> Output | None:
    if isinstance(result, tuple) and all(isinstance(axis, Tensor) and axis.dim() == 3 for axis in result):
        return Output('SimCC axes', list, partial(_each, partial(losses.softmax_loss, dim=2)))
    tensors = _flat(result)
    # A tuple holds tensors of several meanings: heatmaps and tags, coordinates and heatmaps.
    if isinstance(result, tuple) or not tensors or any(tensor.dim() != 4 for tensor in tensors):
        return None
    return Output('heatmaps', _flat, _heatmap_loss, resizable=True)


def _each(loss: Callable[..., Tensor], student: Tensors, teachers: Sequence[Tensors], temperature: float, *,
          summed: bool = False) -> Tensor:
    """Return the sum over outputs of the mean over batch and places.

    With ``summed`` values of one sample are added up first.
    """
    total = []
    for number, own in enumerate(student):
        values = loss(own, [member[number] for member in teachers], temperature)
        total.append((values.flatten(1).sum(1) if summed else values).mean())
    return sum(total)


def _heatmap_loss(student: Tensors, teachers: Sequence[Tensors], temperature: float) -> Tensor:
    """Return the mean squared difference from the mean of the teachers' heatmaps, summed over stages."""
    return sum((own.float() - losses.mean(member[number].float() for member in teachers)).square().mean()
               for number, own in enumerate(student))


def maps_of(path: str, result: Any) -> list[Tensor]:
    """Return the maps, ``(N, C, ...)``, that a backbone or neck has returned.

    Raises:
        ConfigError: If there are none.
    """
    tensors = _flat(result)
    if not tensors or any(tensor.dim() not in (2, 4) for tensor in tensors):
        raise ConfigError(f'maps: {path} returned {described(result)}, where maps (N, C, H, W) or vectors (N, C) of '
                          'fixed places are expected')
    return tensors


def check_shapes(student: Tensors, teacher: Tensors, where: str, resizable: bool, same_width: bool = True) -> None:
    """Check that a teacher's tensors can stand beside the student's.

    Args:
        student: The student's, ``(N, C, ...)``.
        teacher: The teacher's.
        where: Which teacher's what, for messages.
        resizable: Whether height and width may differ, in one proportion.
        same_width: Whether ``C`` must be the same.

    Raises:
        ConfigError: If not, with both shapes.
    """
    shapes = f'{described(teacher)}, the student has {described(student)}'
    if len(student) != len(teacher):
        raise ConfigError(f'{where}: has {shapes}; they should be as many')
    for own, other in zip(student, teacher):
        if same_width and own.shape[1] != other.shape[1]:
            raise ConfigError(f'{where}: has {shapes}; the numbers of channels (classes, keypoints, anchors) differ: '
                              'it was trained for something else')
        sizes = own.shape[2:], other.shape[2:]
        if sizes[0] != sizes[1] and not (resizable and _in_proportion(*sizes)):
            raise ConfigError(f'{where}: has {shapes}; '
                              + ('height and width are not in proportion' if resizable else
                                 'places would have to be the same'))


def _in_proportion(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two maps may be of one image; strides round their sides."""
    if len(first) != 2 or len(second) != 2:
        return False
    return abs(first[0] * second[1] - first[1] * second[0]) < max(sum(first), sum(second))


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """Return maps in the height and width of others."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    return functional.interpolate(maps.float(), like.shape[2:], mode='bilinear', align_corners=False)


def described(result: Any) -> str:
    """Return the shapes of a result, as text."""
    tensors = _flat(result)
    if not tensors:
        return f'a {type(result).__name__}'
    shapes = [str(tuple(tensor.shape)) for tensor in tensors]
    return ', '.join(shapes[:6]) + (', ...' if len(shapes) > 6 else '')


def _flat(result: Any) -> list[Tensor]:
    """Return the tensors of nested lists and tuples in order, none if there is anything else."""
    if isinstance(result, Tensor):
        return [result]
    if not isinstance(result, (list, tuple)):
        return []
    parts = [_flat(part) for part in result]
    return [tensor for part in parts for tensor in part] if all(parts) else []
