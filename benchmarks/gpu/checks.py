"""The paths of every method on a device against the CPU in the same process."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from benchmarks.gpu.bench import SIZE, Bench, folder
from benchmarks.gpu.compare import Values, compared, computing_on, exact_float32, other_choices, timed
from benchmarks.gpu.results import FAIL, PASS
from mmprune_ext.ops import StripeConv2d
from mmprune_ext.ops.stripe_conv2d import FORMS
from mmprune_ext.repair import repair_least_squares
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.units import slim
from mmprune_ext.workflows.sensitivity import Measurement, measure_sensitivity

Result = Mapping[str, Any]
RATIO = 0.3  # what goes of each unit where that does not matter
# Test images that may be told otherwise: of 2,000 a few lie between two classes.
TOLD_OTHERWISE = 0.005
# Share by which the first loss may differ in float16: 11 bits, through all layers.
HALF = 0.05
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    'L1Norm': {'target_pruning_ratio': RATIO},
    'DCFF': {'target_pruning_ratio': RATIO, 'by_epoch': False},
    'ChipNet': {'budget': {'flops': 0.5}, 'by_epoch': False},
    'StripeWise': {}}


# ---------------------------------------------------------------- scores

def scores(bench: Bench, method: str) -> Result:
    """Compare the scores of a method, and the channels that stay by them."""
    dense, found = bench.dense(), {}
    key = 'scores by gradients' if method == 'Fisher' else 'scores'
    calibration = {} if method == 'L1' else {'calibration': {'num_batches': bench.sizes.batches}}

    def run(device: str, dtype: torch.dtype) -> Values:
        model = copy.deepcopy(dense).to(device=device, dtype=dtype)
        settings = copy.deepcopy(calibration)
        if settings:
            settings['calibration']['dataloader'] = bench.batches(bench.sizes.batches)
        mutator = MODELS.build({'type': f'mmprune_ext.{method}Mutator', 'demo_inputs': SIZE, **settings})
        with computing_on(device):
            mutator.prepare(model)
            own = {name: value.cpu().double() for name, value in mutator.scores(model).items()}
        found[dtype] = own
        sizes = torch.stack([value.norm().clamp(min=1e-300) for value in own.values()])
        return {key: torch.cat([value / size for value, size in zip(own.values(), sizes)]),
                'logarithms of their sizes': sizes.log()}
    result = compared(run, bench.device, times=method != 'L1' and not bench.sizes.is_quick)
    others, total, farthest = other_choices(found[torch.float32], found[torch.float64])
    allowed = 2 * result['allowed'][key]  # on both sides of the border
    status = result['status'] if farthest <= allowed else FAIL
    return {**_told(result), 'status': status, 'numbers': {
        **result['numbers'], 'chosen otherwise': f'{others} of {total} channels, at most {farthest:.1e} of the largest '
                                                 f'score from the border (allowed {allowed:.1e})'}}


# ---------------------------------------------------------------- training steps

def losses_and_gradients(model: nn.Module, inputs: Tensor, samples: list[Any]) -> dict[str, Tensor]:
    """Return the losses of a training step, and the gradients by kind of parameter, all of a kind in a row."""
    losses = model(inputs, samples, mode='loss')
    model.parse_losses(losses)[0].backward()
    found = {'losses': torch.stack([value.detach().double() for value in losses.values()])}
    kinds: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            kinds.setdefault(name.rpartition('.')[2], []).append(parameter.grad.flatten())
    return {**found, **{f'gradients of {kind}': torch.cat(values) for kind, values in kinds.items()}}


def training_step(bench: Bench, model: nn.Module, act: Callable[..., Values]) -> Result:
    """Compare what a training step of a model gives."""
    def run(device: str, dtype: torch.dtype) -> Values:
        own = copy.deepcopy(model).to(device=device, dtype=dtype).train()
        with computing_on(device):
            return act(own, *bench.batch(device, dtype))
    return _told(compared(run, bench.device))


def dense_step(bench: Bench) -> Result:
    """Compare a step of the dense network: what the others are to be seen beside."""
    return training_step(bench, bench.dense(), losses_and_gradients)


def dcff_step(bench: Bench) -> Result:
    """Compare a step with mixtures of all filters, the mixtures, a later loss with one filter each, and the export."""
    def act(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Values:
        model.update_fusion(0, 100)
        found = losses_and_gradients(model, inputs, samples)
        found['mixtures'] = torch.cat([layer.fusion.flatten() for _, layer in model.fuse_layers()])
        model.update_fusion(50, 100)
        with torch.no_grad():
            found['later losses'] = torch.stack(list(model(inputs, samples, mode='loss').values()))
            found['exported'] = model.export_model().eval()(inputs, mode='tensor')
        return found
    return training_step(bench, bench.pruning('DCFF', **SETTINGS['DCFF']), act)


def chipnet_step(bench: Bench) -> Result:
    """Compare a step of a search, and the channels that would stay."""
    def act(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Values:
        model.set_step(5)
        found = losses_and_gradients(model, inputs, samples)
        model.eval()
        found['masks'] = torch.cat([gate.mask.double() for _, gate in model.channel_gates.items()])
        with torch.no_grad():
            found['pruned as it is'] = model(inputs, mode='tensor')
        return found
    return training_step(bench, bench.pruning('ChipNet', **SETTINGS['ChipNet']), act)


def stripes_lost(bench: Bench) -> nn.Module:
    """Return a network with skeletons of which a third are zero, at random but whole positions among them."""
    model = bench.pruning('StripeWise')
    model.scheduled = True
    generator = torch.Generator().manual_seed(0)
    for _, layer in model.mutator.skeletons(model):
        layer.skeleton.data[torch.rand(layer.skeleton.shape, generator=generator) < 1 / 3] = 0
        layer.skeleton.data[:, 0, 0] = 0
    model.settle()
    return model


def stripe_step(bench: Bench) -> Result:
    """Compare a step with skeletons, and what is left of them after it."""
    def act(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Values:
        found = losses_and_gradients(model, inputs, samples)
        layers = [layer for _, layer in model.mutator.skeletons(model)]
        before = [layer.skeleton.detach().clone() for layer in layers]
        for layer in layers:
            layer.add_sparsity(model.sr)
        torch.optim.SGD(model.parameters(), 0.01).step()
        for layer, numbers in zip(layers, before):
            layer.cut(model.threshold, numbers)
        model.settle()
        found['skeletons afterwards'] = torch.cat([layer.skeleton.detach().flatten() for layer in layers])
        return found
    return training_step(bench, stripes_lost(bench), act)


def stripe_forms(bench: Bench) -> Result:
    """Compare what is exported of a network that has lost stripes, in both forms of its layers."""
    learning = stripes_lost(bench).eval()
    with computing_on('cpu'):
        exported = learning.export_model()

    def run(device: str, dtype: torch.dtype) -> Values:
        inputs, _ = bench.batch(device, dtype)
        found = {}
        with torch.no_grad():
            found['with skeletons'] = copy.deepcopy(learning).to(device=device, dtype=dtype)(inputs, mode='tensor')
            compact = copy.deepcopy(exported).to(device=device, dtype=dtype).eval()
            for form in FORMS:
                for layer in compact.modules():
                    if isinstance(layer, StripeConv2d):
                        layer.set_form(form)
                for size in (1, len(inputs)):
                    found[f'{form}, batch {size}'] = compact(inputs[:size], mode='tensor')
        return found
    return _told(compared(run, bench.device))


def distillation(bench: Bench) -> Result:
    """Compare a step of a fresh network beside the trained one."""
    config = bench.config()
    torch.manual_seed(0)
    model = MODELS.build({'type': 'mmprune_ext.Distilled', 'student': config.model.to_dict(), 'demo_inputs': SIZE,
                          'teachers': [{'config': bench.config_path(), 'checkpoint': bench.checkpoint()}],
                          'data_preprocessor': config.data_preprocessor})
    model.init_weights()

    def act(own: nn.Module, inputs: Tensor, samples: list[Any]) -> Values:
        for teacher in own.distillation.teachers:
            teacher.model.to(device='cpu', dtype=inputs.dtype)  # a teacher follows its images, not their type
        return losses_and_gradients(own, inputs, samples)
    return training_step(bench, model, act)


# ---------------------------------------------------------------- repair, sensitivity

def repair(bench: Bench) -> Result:
    """Compare the weights that a repair solves for, and what the repaired network tells."""
    dense, pruned = bench.dense(), bench.pruning('L1Norm', **SETTINGS['L1Norm'])
    units = pruned.units.copy()
    plain, accuracies = pruned.export_model(), {}

    def run(device: str, dtype: torch.dtype) -> Values:
        model, origin = (copy.deepcopy(each).to(device=device, dtype=dtype) for each in (plain, dense))
        with computing_on(device):
            count = -(-bench.sizes.repair // bench.sizes.batch)
            repair_least_squares(model, origin, units, bench.batches(count), bench.sizes.repair, quiet=True)
        logits, accuracies[dtype] = bench.logits(model, device, dtype)
        weights = [value for value in model.parameters() if value.dim() > 1]
        return {'solved weights': torch.cat([value.detach().flatten() for value in weights]), 'logits': logits}
    result = _told(compared(run, bench.device, times=not bench.sizes.is_quick))
    with exact_float32():
        before = bench.logits(plain, bench.device, torch.float32)[1]
        whole = bench.logits(dense, bench.device, torch.float32)[1]
    truth, found = (accuracies[dtype] for dtype in (torch.float64, torch.float32))
    near = abs(found - truth) <= 100 * TOLD_OTHERWISE + 1e-9
    return {**result, 'status': result['status'] if near else FAIL, 'numbers': {
        **result['numbers'], 'accuracy': f'dense {whole:.2f}, pruned {before:.2f}, repaired {found:.2f} (float64 '
                                         f'{truth:.2f}) on {bench.sizes.tested} test images'}}


def sensitivity(bench: Bench) -> Result:
    """Compare the curve of one unit, on the device also with every pass computed whole."""
    config = bench.config()
    units = bench.pruning('L1Norm', target_pruning_ratio=0.0).units.prunable
    name = next(name for name, unit in units.items() if name.endswith('conv1') and name.count('.') > 1)
    mutator = {'exclude': [other for other in units if other != name]}
    curves, seconds = {}, {}
    for key, device, sharing in (('cpu', 'cpu', True), ('device', bench.device, True), ('whole', bench.device, False)):
        wanted = Measurement((0.25, 0.5, 0.75), bench.sizes.tested, mutator=mutator, input_size=SIZE, sharing=sharing)
        with folder() as place, computing_on(device), exact_float32():
            measured, seconds[key] = timed(
                lambda: measure_sensitivity(config, bench.checkpoint(), place, 'l1', wanted), device)  # noqa: B023
        curves[key] = [measured.dense, *(point.metric for point in measured.curves[name].points)]
    farthest = {key: max(abs(a - b) for a, b in zip(curves[key], curves['cpu'])) for key in ('device', 'whole')}
    allowed = 100 * max(TOLD_OTHERWISE, 1 / bench.sizes.tested)
    good = max(farthest.values()) <= allowed + 1e-6
    return _told({'status': PASS if good else FAIL, 'seconds': seconds, 'text': f'unit {name}', 'numbers': {
        'curve': ' '.join(f'{value:.2f}' for value in curves['device']),
        'off from the CPU': f'{farthest["device"]:.2f} points, every pass whole {farthest["whole"]:.2f} (allowed '
                            f'{allowed:.2f})'}})


# ---------------------------------------------------------------- mixed precision

class Losses(Hook):
    """Keeps the loss of each iteration."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Mapping[str, Any] | None = None) -> None:
        """Keep a loss."""
        self.values.append(outputs['loss'].item())


def short_training(bench: Bench, kind: str, mixed: bool) -> tuple[list[float], bool]:
    """Train a few iterations by mmengine's Runner with the hooks that a method needs.

    Returns:
        The losses, and whether all parameters are finite at the end.
    """
    config = bench.config(device=bench.device)
    config.model = bench.section(config, kind, **SETTINGS[kind])
    config.train_dataloader.batch_size = bench.sizes.batch
    config.optim_wrapper.optimizer.lr = 0.01
    if mixed:
        config.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    with folder() as place, computing_on(bench.device):
        bench.run_config(config, bench.sizes.iterations, place)
        prepare_pruning(config)
        runner, losses = Runner.from_cfg(config), Losses()
        runner.register_hook(losses)
        runner.train()
    return losses.values, all(bool(value.isfinite().all()) for value in runner.model.parameters())


def mixed_precision(bench: Bench, kind: str) -> Result:
    """Check that a method trains in automatic mixed precision, and begins as it does without."""
    possible = bench.device.startswith('cuda')  # mmengine's wrapper takes no CPU
    plain, finite = short_training(bench, kind, False)
    mixed, finite = short_training(bench, kind, True) if possible else (plain, finite)
    off = abs(mixed[0] - plain[0]) / max(abs(plain[0]), 1e-12)
    good = finite and all(map(math.isfinite, mixed)) and off <= HALF
    return {'status': PASS if good else FAIL,
            'text': f'{len(mixed)} iterations' + ('' if possible else ', float32: mixed precision needs a GPU'),
            'numbers': {'first loss': mixed[0], 'float32': plain[0], 'last loss': mixed[-1], 'float32 ': plain[-1]}}


def slimmed(bench: Bench) -> Result:
    """Compare a network that is traced and slimmed where it lies with the same done on the CPU."""
    dense = bench.dense()
    mutator = MODELS.build({'type': 'mmprune_ext.L1Mutator', 'demo_inputs': SIZE})

    def run(device: str, dtype: torch.dtype) -> Values:
        model = copy.deepcopy(dense).to(device=device, dtype=dtype).eval()
        mutator.prepare(model)
        slim(model, mutator.choose(model, 0.5, scores=mutator.scores(model)))
        with torch.no_grad():
            return {'logits': model(bench.batch(device, dtype)[0], mode='tensor')}
    return _told(compared(run, bench.device))


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without what only its check needs, its times among what is told."""
    found = {key: value for key, value in result.items() if key != 'allowed'}
    if 'seconds' in found:
        cpu, device = found['seconds']['cpu'], found['seconds']['device']
        found['numbers'] = {**found['numbers'], 'seconds': f'CPU {cpu:.2f}, device {device:.2f}, a ratio of '
                                                           f'{cpu / device:.1f}'}
    return found


CHECKS: Mapping[str, Callable[[Bench], Result]] = {
    'traced and slimmed on the device': slimmed,
    **{f'scores of {method}': lambda bench, method=method: scores(bench, method)
       for method in ('L1', 'CHIP', 'Fisher', 'OBS')},
    'dense step': dense_step, 'DCFF step': dcff_step, 'ChipNet step': chipnet_step, 'stripe-wise step': stripe_step,
    'stripe convolutions': stripe_forms, 'distillation step': distillation, 'repair': repair,
    'sensitivity of a unit': sensitivity,
    **{f'mixed precision, {kind}': lambda bench, kind=kind: mixed_precision(bench, kind) for kind in SETTINGS}}
