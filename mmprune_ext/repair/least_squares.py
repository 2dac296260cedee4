"""Repair a pruned network without training: weights by least squares, layer after layer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, broadcast, get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.runner import set_random_seed
from rich.progress import track
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmprune_ext.draws import preserved_random_state
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators.calibration import evaluating
from mmprune_ext.repair.held_pair import HeldPair
from mmprune_ext.repair.passes import PassPair, calibration_batches, images_in, parts_of
from mmprune_ext.repair.plan import Plan, Recorder, branch_scale, input_of, make_plan
from mmprune_ext.repair.watch import Viewer, Watch
from mmprune_ext.scores.least_squares import Moments
from mmprune_ext.units import UnitSet
from mmprune_ext.units.layer_matrix import LayerMatrix
from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.slimming import removed_positions

MEMORY = 3 * 2 ** 30  # of activations that wait, in bytes; where it is not enough for all images, fewer are taken
INPUTS = 8192  # of a group of a layer at most: the matrices of a solve take some 3 GiB then
# For each input of a layer, and in all at least; more positions of large maps are not looked at, they say no more.
SAMPLES, FEWEST = 1000, 2 ** 16
PLAN_IMAGES = 8  # that the order of the layers is seen on
SILENT = 1e-2  # of a normalisation's median scale, and of its shortcut: channels below are too weak to make up for that


@dataclass(frozen=True)
class LayerError:
    """How far the outputs of a layer are from what they should be, as a share of their variance.

    Attributes:
        before: With the weights that pruning left, on the inputs that the repaired layers before it give.
        after: With the weights that were solved for.
    """

    before: float
    after: float


@dataclass(frozen=True)
class RepairReport:
    """What a repair has done.

    Attributes:
        num_images: Images used, of all processes.
        layers: The errors of each repaired layer, by path, in execution order.
        skipped: Why other layers that lost channels were left alone, by path.
    """

    num_images: int
    layers: dict[str, LayerError]
    skipped: dict[str, str]


def repair_least_squares(model: nn.Module, dense: nn.Module, units: UnitSet, dataloader: Iterable[Any],
                         num_images: int = 1024, *, ridge: float = 1e-3, positions: float = 1.0, seed: int = 0,
                         quiet: bool = False) -> RepairReport:
    """Give each layer of a slimmed model, in execution order, the weights whose outputs are nearest to the dense's.

    Of each convolution and linear layer that lost channels: ``argmin sum |W x + b - y|^2 + lambda |W - W_kept|^2``,
    ``x`` being what the slimmed model gives it with all layers before repaired, ``y`` what the dense model's layer
    gives at the channels kept. Without a bias, ``b`` goes into the running mean of the batch normalisation that
    follows; without that, too, it is zero. Where a branch ends in a sum, ``y`` makes up for what its shortcut has lost.

    Args:
        model: The slimmed model; its weights change in place, flags and device do not.
        dense: The dense model with its weights.
        units: The units of the dense model, with the choices by which the model was slimmed.
        dataloader: Batches of training images, as testing takes them: not cropped, flipped or mixed at random, of
            which the network sees nothing later. Labels are not used.
        num_images: How many of them, of all processes together. Where activations would take more than 3 GiB,
            layers with large activations are repaired on fewer.
        ridge: ``lambda`` as a share of the mean of the Gram matrix' diagonal, where there are 300 samples or more for
            each input of a layer (:meth:`mmprune_ext.scores.least_squares.Moments.solve`).
        positions: Share of the positions of an output that is looked at, drawn. Where that is more than 1,000 samples
            for each input of the layer, and 65,536 in all, so many are drawn.
        seed: Of augmentation and of the positions.
        quiet: Neither show progress nor log.

    Raises:
        ConfigError: For values that cannot work, or without any image.
    """
    check_settings(num_images, ridge, positions)
    layers, reasons = _layers_of(model, units)
    if not layers:
        return RepairReport(0, {}, reasons)
    with preserved_random_state(), contextlib.ExitStack() as stack:
        set_random_seed(seed)
        for each in (dense, model):
            stack.enter_context(evaluating(each, get_device()))
        pair = stack.enter_context(PassPair(dense, model, layers))
        watches = [stack.enter_context(Watch(each)) for each in (dense, model)]
        batches = calibration_batches(model, dataloader, num_images)
        repair = _Repair(watches, layers, pair, batches, _Settings(num_images, ridge, positions, seed))
        report = repair.run(reasons, quiet)
    if not quiet:
        print_log(f'{len(report.layers)} layers repaired by least squares on {report.num_images} images'
                  + ''.join(f'; "{path}" was left: {why}' for path, why in report.skipped.items()), logger='current')
    return report


def check_settings(num_images: int, ridge: float, positions: float) -> None:
    """Check the settings of a repair.

    Raises:
        ConfigError: Naming the first that cannot work.
    """
    check_integer('num_images', num_images, 1)
    if num_images < get_world_size():
        raise ConfigError(f'repair: num_images is {num_images}, fewer than the {get_world_size()} processes')
    if not _is_number(ridge) or not 0 <= ridge < math.inf:
        raise ConfigError(f'repair: ridge should be a number of at least 0, but got {ridge!r}')
    if not _is_number(positions) or not 0 < positions <= 1:
        raise ConfigError(f'repair: positions is a share, above 0 and at most 1, but got {positions!r}')


def check_integer(key: str, value: Any, lowest: int) -> None:
    """Check that a setting of a repair is an integer of at least so much.

    Raises:
        ConfigError: If it is not.
    """
    if type(value) is not int or value < lowest:
        raise ConfigError(f'repair: {key} should be an integer of at least {lowest}, but got {value!r}')


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _layers_of(model: nn.Module, units: UnitSet) -> tuple[dict[str, Tensor | None], dict[str, str]]:
    """Return the layers that lost channels, with the outputs that stay, ``None`` for all, and why others are left."""
    kept: dict[str, Tensor | None] = {}
    reasons = {}
    removed = removed_positions(units)
    modules = dict(model.named_modules())
    for path, side, dim in removed:
        layer = modules.get(path)
        rule = None if layer is None or dim is not None else rule_for(layer)
        if rule is None or getattr(layer, 'weight', None) is None or layer.weight.dim() < 2:
            continue
        if not LayerMatrix.fits(layer):
            reasons[path] = f'{type(layer).__name__} is not repaired'
        elif LayerMatrix(layer).inputs > INPUTS:
            reasons[path] = f'it reads {LayerMatrix(layer).inputs:,} inputs, more than {INPUTS:,}'
        elif side == 'out':
            size = LayerMatrix(layer)
            gone = removed[path, side, dim]
            kept[path] = torch.from_numpy(np.setdiff1d(np.arange(size.groups * size.outputs + len(gone)), gone))
        else:
            kept.setdefault(path, None)
    return kept, reasons


@dataclass(frozen=True)
class _Settings:
    num_images: int
    ridge: float
    positions: float
    seed: int


class _Repair:
    """Go from event to event with all passes at once, and solve for a layer where they wait for it."""

    def __init__(self, watches: list[Watch], kept: dict[str, Tensor | None], pair: PassPair, batches: Iterator[Any],
                 settings: _Settings) -> None:
        self._dense, self._pruned = watches
        self._kept = kept
        self._pair = pair
        self._batches = batches
        self._settings = settings
        self._generator = torch.Generator()
        self._layers: dict[str, LayerError] = {}
        self._passes: list[HeldPair] = []
        self._images = settings.num_images
        self._ended = False

    def run(self, reasons: dict[str, str], quiet: bool) -> RepairReport:
        """Repair all layers."""
        first = next(self._batches, None)
        if first is None:
            raise ConfigError('repair: the dataloader gave no image')
        self._plan = self._planned(first, reasons)
        self._passes.append(HeldPair((self._dense, self._pruned), self._pair, self._plan, first))
        try:
            for number in track(range(len(self._plan.events)), 'repair', transient=True,
                                disable=quiet or not is_main_process()):
                self._step(number)
            images = torch.tensor(sum(passes.images for passes in self._passes))
        finally:
            for passes in self._passes:
                passes.close()
        all_reduce(images)
        return RepairReport(int(images), self._layers, dict(sorted(self._plan.skipped.items())))

    def _planned(self, data: Any, reasons: dict[str, str]) -> Plan:
        few = next(parts_of(data, PLAN_IMAGES))
        seen = []
        for watch, run in zip((self._dense, self._pruned), self._pair.runs(few)):
            recorder = Recorder(watch.model, self._kept)
            recorder.images = images_in(few)
            with torch.no_grad(), watch.viewing(recorder):
                run()
            seen.append(recorder)
        return make_plan(seen[1], seen[0], reasons)

    def _step(self, number: int) -> None:
        event = self._plan.events[number]
        allowed = max(1, int(MEMORY / max(event.alive, 1)))
        self._images = min(self._settings.num_images, allowed * get_world_size())
        if event.kind == 'block':
            values = [passes.advance(event) for passes in self._passed(number, allowed)]
            self._repair_block(event.path, values)
            return
        waits = event.kind == 'layer' and event.path in self._plan.sums
        moments = None if waits else self._moments(event.path)
        for passes in self._passed(number, allowed):
            dense, pruned = passes.advance(event)
            if event.kind == 'sum':
                x, output = passes.branches.pop(event.path)
                self._add(event.path, moments, x, (output, dense, pruned), passes.images, self._of_branch)
            elif not waits:
                self._add(event.path, moments, pruned, (dense,), passes.images, self._at_kept)
        if moments is not None:
            self._solve(event.path, moments)

    def _passed(self, number: int, allowed: int) -> Iterator[HeldPair]:
        """Yield all passes, then as many more, brought to where the others are, as the memory allows."""
        yield from list(self._passes)
        while not self._ended and sum(passes.images for passes in self._passes) < allowed:
            data = next(self._batches, None)
            if data is None:
                self._ended = True
                return
            passes = HeldPair((self._dense, self._pruned), self._pair, self._plan, data)
            self._passes.append(passes)
            for event in self._plan.events[:number]:
                passes.advance(event)
                if event.kind == 'sum':
                    passes.branches.pop(event.path)
            yield passes

    def _repair_block(self, block: str, values: list[tuple[Any, Any]]) -> None:
        """Repair the layers of a module in which some are called several times: all calls count together."""
        watches = self._dense, self._pruned
        for path in self._plan.inside[block]:
            moments = self._moments(path)
            for passes, arguments in zip(self._passes, values):
                runs = passes.runs if block == '' else [
                    _call(watch.model.get_submodule(block), given) for watch, given in zip(watches, arguments)]
                self._compare_calls(path, moments, *runs, passes.images)
            self._solve(path, moments)

    def _compare_calls(self, path: str, moments: Moments, dense: Callable[[], Any], pruned: Callable[[], Any],
                       images: int) -> None:
        wanted: list[Tensor] = []
        count = self._plan.calls[path]
        for watch, run, look in (
                (self._dense, dense, lambda x, y: wanted.append(y.clone())),
                (self._pruned, pruned,
                 lambda x, y: self._add(path, moments, x, (wanted.pop(0),), images, self._at_kept))):
            with torch.no_grad(), watch.viewing(_Calls(path, count, look)), contextlib.suppress(_Enough):
                run()

    def _moments(self, path: str) -> Moments:
        layer = self._pruned.model.get_submodule(path)
        matrix = LayerMatrix(layer)
        self._generator.manual_seed(self._settings.seed)
        return Moments(matrix.groups, matrix.inputs, matrix.outputs, layer.weight.device)

    def _add(self, path: str, moments: Moments, x: Tensor, outputs: tuple[Tensor, ...], images: int,
             target: Callable[..., Tensor]) -> None:
        """Add what a layer reads in one batch, and what ``target(path, *outputs)`` says that it should give."""
        matrix = LayerMatrix(self._pruned.model.get_submodule(path))
        if not matrix.reads_as_many(x, outputs[0]):
            self._plan.skipped[path] = 'it reads other samples than in the dense model, chosen by values'
            return
        # Positions of all images together. Channels count as of the dense model: ``outputs`` are.
        width = outputs[0].shape[-1 if matrix.is_linear else -1 - len(matrix.kernel)]
        places = outputs[0].numel() / width * self._plan.calls[path] * self._images / images
        share = min(self._settings.positions, max(SAMPLES * matrix.inputs, FEWEST) / max(places, 1))
        for samples in matrix.samples(x, outputs, share, self._generator, partial(target, path)):
            moments.add(samples)

    def _at_kept(self, path: str, output: Tensor) -> Tensor:
        """Return the dense model's outputs, channels last, at those that the slimmed model has."""
        keep = self._kept[path]
        return output if keep is None else output.index_select(-1, keep.to(output.device))

    def _of_branch(self, path: str, output: Tensor, shortcut: Tensor, left: Tensor) -> Tensor:
        """Return what the last layer of a branch should give for the dense model's sum.

        Args:
            path: Of the layer.
            output: What it gives in the dense model, channels last.
            shortcut: What the dense model adds to the branch.
            left: What the slimmed model adds.
        """
        norm = self._plan.sums[path]
        scale = branch_scale(None if norm is None else self._pruned.model.get_submodule(norm), left)
        shortcut, output = self._at_kept(path, shortcut), self._at_kept(path, output)
        # Of a branch that starts at zero all scales are next to nothing: what it says is told by the sum.
        heard = scale.abs() * _deviation(output) > SILENT * _deviation(shortcut)
        inverse = torch.where(heard & (scale.abs() > SILENT * scale.abs().median()), 1 / scale, 0.0)
        return output + (shortcut - left) * inverse

    @torch.no_grad()
    def _solve(self, path: str, moments: Moments) -> None:
        all_reduce(moments.sums)
        skipped = torch.tensor(float(path in self._plan.skipped), device=moments.sums.device)
        all_reduce(skipped, 'max')  # the same in every process
        if skipped:
            return
        matrix = LayerMatrix(self._pruned.model.get_submodule(path))
        norms = [self._pruned.model.get_submodule(norm) for norm in self._plan.norms.get(path, [])]
        bias = matrix.bias()
        found = moments.solve(matrix.weight(), bias, self._settings.ridge, bias is not None or bool(norms))
        for values in (found.weight, found.shift):
            broadcast(values)  # to the last bit
        matrix.set_weight(found.weight)
        if bias is not None:
            matrix.set_bias(found.shift)
        else:
            for norm in norms:
                norm.running_mean -= found.shift.flatten().to(norm.running_mean)
        size = max(found.size, torch.finfo(torch.float64).tiny)
        self._layers[path] = LayerError(found.before / size, found.after / size)


def _deviation(values: Tensor) -> Tensor:
    """Return the standard deviation of each channel, the last dimension."""
    beside = list(range(values.dim() - 1))
    return (values - values.mean(beside)).square().mean(beside).sqrt()


def _call(module: nn.Module, given: tuple[tuple, dict[str, Any]]) -> Callable[[], Any]:
    """Return a call with arguments that it may change without harm."""
    def run() -> Any:
        args, kwargs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, given)
        return module(*args, **kwargs)
    return run


class _Enough(BaseException):
    """Ends a pass behind the last layer that it is looked at for."""


class _Calls(Viewer):
    """Look at the calls of one layer, and end the pass after the last."""

    def __init__(self, path: str, count: int, look: Callable[[Tensor, Tensor], Any]) -> None:
        self._path = path
        self._count = count
        self._look = look

    def call(self, path: str, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        output = forward(*args, **kwargs)
        if path == self._path:
            self._look(input_of(args, kwargs), output)
            self._count -= 1
            if not self._count:
                raise _Enough
        return output
