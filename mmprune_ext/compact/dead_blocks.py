"""Find residual blocks of which only the shortcut is left."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation

from mmprune_ext.draws import preserved_random_state
from mmprune_ext.ops.shortcut_block import FUNCTION, ShortcutBlock
from mmprune_ext.units.demo_inputs import DemoInputs, eval_pass, set_training
from mmprune_ext.units.stripes import Shortcut

Calls = list[tuple[Tensor, Tensor]]
_SCALES = (1.0, 10.0)  # of the inputs that a block with other weights is tried on
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_shortcuts(model: nn.Module, dead: Collection[str], demo_inputs: DemoInputs = None) -> dict[str, Shortcut]:
    """Return the blocks that compute nothing but their shortcut, with what that is.

    Told by what they compute: a block of any library is one if its outputs are, on the demo inputs, those of one
    of its layers or its inputs themselves, with or without an activation. So they have to be with all its weights drawn
    anew, but for those that are zero: a branch that is silent on the demo inputs alone is none that is dead.

    Args:
        model: The model, whose weights matter; it stays as it was.
        dead: Paths of convolutions without a live stripe, inside of which blocks they are looked for.
        demo_inputs: What the model is run on (:func:`mmprune_ext.units.trace_units`).

    Returns:
        Shortcuts by path of the block, none inside another.
    """
    if not dead:
        return {}
    with preserved_random_state(), torch.no_grad():
        torch.manual_seed(0)
        work = copy.deepcopy(model).cpu().float()
        set_training(work, False)
        calls = _calls(work, _blocks_around(work, dead), demo_inputs)
        found: dict[str, Shortcut] = {}
        for path in sorted(calls, key=lambda path: path.count('.')):
            if any(path.startswith(f'{outer}.') for outer in found):
                continue
            shortcut = _shortcut_of(work.get_submodule(path), calls[path])
            if shortcut is not None:
                found[path] = shortcut
        return found


def _blocks_around(model: nn.Module, dead: Collection[str]) -> set[str]:
    """Return the paths of the modules that hold a dead convolution, but for the model itself and containers."""
    paths = {'.'.join(parts[:end]) for parts in (path.split('.') for path in dead) for end in range(1, len(parts))}
    return {path for path in paths if not isinstance(model.get_submodule(path), _CONTAINERS)}


def _calls(model: nn.Module, paths: Collection[str], demo_inputs: DemoInputs) -> dict[str, Calls]:
    """Return what modules read and gave, by path, of those that take one tensor and give one."""
    calls: dict[str, Calls] = {path: [] for path in paths}
    others: set[str] = set()

    def watch(path: str, module: nn.Module) -> list[Any]:
        given: list[Tensor] = []

        def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            # Kept before the call: a block may write into its input.
            given[:] = [args[0].clone()] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else []

        def leave(_: nn.Module, args: tuple, output: Any) -> None:
            if given and isinstance(output, Tensor):
                calls[path].append((given[0], output.clone()))
            else:
                others.add(path)
        return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]

    handles = [handle for path in paths for handle in watch(path, model.get_submodule(path))]
    eval_pass(model, demo_inputs)(model)
    for handle in handles:
        handle.remove()
    return {path: found for path, found in calls.items() if found and path not in others}


def _shortcut_of(block: nn.Module, calls: Calls) -> Shortcut | None:
    if not all(float(output.std()) > 0 for _, output in calls if output.numel() > 1):
        return None  # a constant would fit anything
    drawn = _drawn_anew(block)
    for shortcut in _candidates(block):
        try:
            layer = ShortcutBlock(block, shortcut.layer, shortcut.activation)
            if not all(_equal(layer(given.clone()), wanted) for given, wanted in calls):
                continue
            layer = ShortcutBlock(drawn, shortcut.layer, shortcut.activation)
            if all(_equal(layer(scale * given), drawn(scale * given)) for given, _ in calls for scale in _SCALES):
                return shortcut
        except Exception:  # layers that read something else than the block does may fail in any way
            continue
    return None


def _drawn_anew(block: nn.Module) -> nn.Module:
    """Return a copy of a block with other weights, of both signs, where they are not zero."""
    drawn = copy.deepcopy(block)
    generator = torch.Generator().manual_seed(0)
    for parameter in drawn.parameters():
        values = 2 * torch.rand(parameter.shape, generator=generator) - 1
        parameter.data.copy_(torch.where(parameter == 0, parameter, values.to(parameter)))
    return drawn


def _candidates(block: nn.Module) -> Iterator[Shortcut]:
    children = dict(block.named_children())
    activations = [name for name, layer in children.items() if type(layer).__module__ == activation.__name__]
    layers = [name for name, layer in children.items()
              if name not in activations and not isinstance(layer, nn.ModuleList)]
    for layer in ('', *layers):
        for after in ('', *dict.fromkeys([*activations, FUNCTION])):
            yield Shortcut(layer, after)


def _equal(given: Any, wanted: Tensor) -> bool:
    return (isinstance(given, Tensor) and given.shape == wanted.shape
            and torch.allclose(given, wanted, rtol=1e-5, atol=1e-6))
