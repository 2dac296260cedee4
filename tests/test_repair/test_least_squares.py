"""Weights by least squares: against a plain solve in float64 on the layer's answers to each weight alone."""
from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmprune_ext.errors import ConfigError
from mmprune_ext.repair import RepairReport, repair_least_squares
from mmprune_ext.scores.least_squares import Moments
from mmprune_ext.units import UnitSet, slim, trace_units
from tests.test_units.reference import choose, outputs_of
from tests.test_units.toy_nets import TOYS

SIZE = (3, 9, 8)


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def networks(dense: nn.Module, seed: int = 0, only: str | None = None) -> tuple[nn.Module, nn.Module, UnitSet]:
    """Return a network in float64, what a random choice leaves of it, and its units."""
    units = trace_units(dense, torch.randn(1, *SIZE))
    if only is None:
        choose(units, seed, 2)
    else:
        units[only].choose(range(units[only].num_channels // 2))
    return dense.double().eval(), slim(copy.deepcopy(dense), units).double().eval(), units


def calls(model: nn.Module, path: str, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return what a layer reads and gives in each of its calls."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda module, args, out: found.append((args[0].clone(), out.clone())))
    with torch.no_grad():
        model(x)
    handle.remove()
    return found


def design(layer: nn.Module, inputs: list[Tensor], bias: bool) -> Tensor:
    """Return the outputs of a layer, one column for each weight that is one while all others are zero."""
    zeros = {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
    columns = []
    for name in ('weight', 'bias') if bias else ('weight',):
        for place in range(zeros[name].numel()):
            only = {**zeros, name: zeros[name].clone()}
            only[name].view(-1)[place] = 1
            with torch.no_grad():
                columns.append(torch.cat([functional_call(layer, only, (x,)).flatten() for x in inputs]))
    return torch.stack(columns, 1)


def solved(layer: nn.Module, inputs: list[Tensor], wanted: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    bias = layer.bias is not None
    matrix = design(layer, inputs, bias)
    found = torch.linalg.lstsq(matrix, torch.cat([y.flatten() for y in wanted])[:, None], driver='gelsd').solution[:, 0]
    size = layer.weight.numel()
    return found[:size].view(layer.weight.shape), found[size:] if bias else None


def kept_of(units: UnitSet, path: str) -> list[int] | None:
    """Return the outputs of a layer that stay."""
    gone: set[int] = set()
    for unit in units.values():
        for member in [*unit.producers, *unit.followers]:
            if member.module == path and unit.indices is not None:
                removed = [c for c in range(unit.num_channels) if c not in unit.indices]
                gone |= set(member.positions(unit.num_channels)[removed].ravel().tolist())
    return gone


def at_kept(units: UnitSet, path: str, output: Tensor, dim: int) -> Tensor:
    gone = kept_of(units, path)
    return output.index_select(dim, torch.tensor([c for c in range(output.shape[dim]) if c not in gone]))


class Chain(nn.Module):
    """Layers in a row, with activations between."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number < len(self.layers) - 1 and not isinstance(layer, nn.Flatten):
                x = torch.tanh(x)
        return x


class Tokens(nn.Module):
    """Linear layers over the positions of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 3, stride=2)
        self.hidden = nn.Linear(6, 10)
        self.out = nn.Linear(10, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(torch.tanh(self.embed(x)).flatten(2).transpose(1, 2))))


class Attention(nn.Module):
    """Positions of a map that attend to each other, and the sum of both."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 3, stride=3)
        self.queries, self.keys, self.values = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x)).flatten(2).transpose(1, 2)
        weights = (3 * self.queries(x) @ self.keys(x).transpose(1, 2)).softmax(-1)
        return self.head(torch.tanh(self.out(weights @ self.values(x))))


class Levels(nn.Module):
    """A head over three levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.ModuleDict({'conv': nn.Conv2d(6, 7, 3, padding=1), 'out': nn.Conv2d(7, 3, 1)})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.tanh(self.stem(x))
        levels = [x, x[..., ::2, ::2], x[..., ::3, ::3]]
        return tuple(self.head['out'](torch.tanh(self.head['conv'](level))) for level in levels)


def chain(*middle: nn.Module, width: int = 8, out: int = 8) -> Callable[[], nn.Module]:
    return lambda: Chain(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 1), *map(copy.deepcopy, middle),
                         nn.Conv2d(out, 3, 1))


KINDS: dict[str, Callable[[], nn.Module]] = {
    'strided': chain(nn.Conv2d(8, 8, 3, stride=2, padding=1, dilation=2, bias=False)),
    'reflected': chain(nn.Conv2d(8, 8, (3, 2), padding=1, padding_mode='reflect')),
    'grouped': chain(nn.Conv2d(8, 12, 3, padding='same', groups=2), out=12),
    'depthwise': chain(nn.Conv2d(8, 8, 3, groups=8, bias=False)),
    'multiplier': chain(nn.Conv2d(8, 16, 3, groups=8), out=16),
    'transposed': chain(nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1), out=6),
    'transposed in groups': chain(nn.ConvTranspose2d(8, 6, (2, 3), stride=(1, 2), groups=2, dilation=(2, 1),
                                                     bias=False), out=6),
    'after a flatten': lambda: Chain(nn.Conv2d(3, 5, 3, stride=4), nn.Flatten(), nn.Linear(5 * 2 * 2, 7),
                                     nn.Linear(7, 3)),
    'tokens': Tokens,
    'attention': Attention,
    'levels': Levels,
}


def repaired(dense: nn.Module, pruned: nn.Module, units: UnitSet, x: Tensor, **options: float) -> RepairReport:
    return repair_least_squares(pruned, dense, units, x.split(16), len(x), quiet=True, **{'ridge': 0.0, **options})


@pytest.mark.parametrize('kind', KINDS)
def test_each_layer_has_the_weights_of_a_plain_solve(kind):
    torch.manual_seed(0)
    dense, pruned, units = networks(KINDS[kind]())
    x = images(40)
    report = repaired(dense, pruned, units, x)
    assert report.num_images == 40
    assert report.skipped == {}
    assert len(report.layers) >= 3
    for path, error in report.layers.items():
        layer = pruned.get_submodule(path)
        dim = -1 if isinstance(layer, nn.Linear) else 1
        read = [each[0] for each in calls(pruned, path, x)]
        wanted = [at_kept(units, path, out, dim if dim == 1 else out.dim() - 1) for _, out in calls(dense, path, x)]
        weight, bias = solved(layer, read, wanted)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-7, atol=1e-7)
        if bias is not None:
            torch.testing.assert_close(layer.bias.detach(), bias, rtol=1e-7, atol=1e-7)
        assert error.after <= error.before + 1e-9, path
    assert any(error.after < 0.9 * error.before for error in report.layers.values())


def test_the_ridge_pulls_towards_the_weights_that_were_kept():
    torch.manual_seed(0)
    dense, pruned, units = networks(Chain(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), only='layers.0')
    kept = pruned.layers[1].weight.detach().clone()
    x = images(24)
    repaired(dense, pruned, units, x, ridge=0.003)
    [(read, _)], [(_, wanted)] = calls(pruned, 'layers.1', x), calls(dense, 'layers.1', x)
    columns = nn.functional.unfold(read, 3).transpose(0, 1).flatten(1)
    columns = columns - columns.mean(1, keepdim=True)
    rows = wanted.transpose(0, 1).flatten(1)
    gram = columns @ columns.T
    few = 300 * columns.shape[0] / columns.shape[1]
    assert few > 1
    scale = 0.003 * few * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    expected = ((rows - rows.mean(1, keepdim=True)) @ columns.T + kept.flatten(1) @ scale) @ (gram + scale).inverse()
    torch.testing.assert_close(pruned.layers[1].weight.detach().flatten(1), expected)


def test_of_a_layer_without_a_bias_the_normalisation_is_shifted():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    nn.init.normal_(dense[3].running_mean)
    dense, pruned, units = networks(dense, only='0')
    x = images(24)
    repaired(dense, pruned, units, x)
    [(read, given)], [(_, wanted)] = calls(pruned, '2', x), calls(dense, '2', x)
    shifts = torch.eye(4, dtype=torch.float64).repeat_interleave(wanted[0, 0].numel(), 0).repeat(24, 1)
    matrix = torch.cat([design(pruned[2], [read], False), shifts], 1)
    found = torch.linalg.lstsq(matrix, wanted.flatten()[:, None], driver='gelsd').solution[:, 0]
    torch.testing.assert_close(pruned[2].weight.detach().flatten(), found[:-4])
    torch.testing.assert_close(dense[3].running_mean - pruned[3].running_mean, found[-4:])
    # The statistics that are kept are again those of what the layer gives.
    torch.testing.assert_close(given.mean((0, 2, 3)) - wanted.mean((0, 2, 3)),
                               pruned[3].running_mean - dense[3].running_mean)


@pytest.mark.parametrize('layers', [
    (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3)),
    (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ConvTranspose2d(8, 5, 2, 2)),
    (nn.Conv2d(3, 8, 3, stride=4), nn.Flatten(), nn.Linear(32, 5)),
    (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))],
    ids=['1x1', 'transposed', 'after a flatten', 'norms'])
def test_a_channel_that_others_make_up_goes_without_a_trace(layers):
    torch.manual_seed(0)
    dense = nn.Sequential(*map(copy.deepcopy, layers)).double()
    with torch.no_grad():
        for values in dense[0].parameters():
            values[5] = 0.7 * values[1] - 2 * values[2] + 0.1 * values[7]
        if len(layers) == 4:
            nn.init.normal_(dense[1].running_mean)
            nn.init.uniform_(dense[1].weight, 0.5, 2)
    units = trace_units(dense, torch.randn(1, *SIZE))
    dense.double().eval()
    units['0'].choose([c for c in range(8) if c != 5])
    pruned = slim(copy.deepcopy(dense), units).eval()
    x, further = images(32), images(3, seed=9)
    with torch.no_grad():
        assert (pruned(further) - dense(further)).abs().max() > 0.1
        repaired(dense, pruned, units, x, ridge=1e-14)
        torch.testing.assert_close(pruned(further), dense(further), rtol=1e-8, atol=1e-8)


class Residual(nn.Module):
    """A block whose shortcut is the input, or a convolution of it."""

    def __init__(self, shortcut: bool = False, late: bool = False, in_place: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 1) if shortcut else None
        self.late, self.in_place = late, in_place
        nn.init.uniform_(self.norm.weight, 0.5, 2)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        with torch.no_grad():
            self.norm.weight[3] = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        identity = x if self.down is None or self.late else self.down(x)
        out = self.norm(self.conv2(torch.relu(self.conv1(x))))
        if self.down is not None and self.late:
            identity = self.down(x)
        if self.in_place:
            out += identity
        else:
            out = identity + out
        return torch.tanh(out)


@pytest.mark.parametrize('options', [
    {}, {'shortcut': True}, {'shortcut': True, 'late': True, 'in_place': True}], ids=str)
def test_the_last_layer_of_a_branch_makes_up_for_the_shortcut(options):
    torch.manual_seed(0)
    dense = nn.Sequential(Residual(**options), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    dense, pruned, units = networks(dense, seed=2)
    name = next(unit.name for unit in units.values() if any(m.module == '0.conv2' for m in unit.producers))
    assert units[name].keep < 8
    sums: dict[nn.Module, list[Tensor]] = {}
    x = images(32)
    repaired(dense, pruned, units, x)
    with torch.no_grad():
        for model in (dense, pruned):
            block = model[0]
            stem = torch.relu(block.stem(x))
            identity = stem if block.down is None else block.down(stem)
            middle = torch.relu(block.conv1(stem))
            sums[model] = [identity, middle, block.conv2(middle)]
    keep = units[name].indices
    scale = (dense[0].norm.weight / (dense[0].norm.running_var + dense[0].norm.eps).sqrt())[keep].detach()
    lost = sums[dense][0][:, keep] - sums[pruned][0]
    lost = torch.where((scale.abs() > 1e-3)[:, None, None], lost / scale[:, None, None], 0.0)
    target = sums[dense][2][:, keep] + lost
    columns = nn.functional.unfold(sums[pruned][1], 3, padding=1).transpose(0, 1).flatten(1)
    matrix = torch.cat([columns, torch.ones_like(columns[:1])]).T
    expected = torch.linalg.lstsq(matrix, target.transpose(0, 1).flatten(1).T, driver='gelsd').solution[:-1].T
    torch.testing.assert_close(pruned[0].conv2.weight.detach().flatten(1), expected, rtol=1e-6, atol=1e-7)
    # What comes after has seen the repaired sum.
    [(read, _)], [(_, wanted)] = calls(pruned, '1', x), calls(dense, '1', x)
    weight, _ = solved(pruned[1], [read], [at_kept(units, '1', wanted, 1)])
    torch.testing.assert_close(pruned[1].weight.detach(), weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('shares', [(0.005,), (0.005, 0.02)], ids=str)
def test_branches_that_add_next_to_nothing_do_not_make_up_for_the_shortcut(shares):
    """Of a scale that starts at zero and has hardly grown: channels below 1% of the shortcut's deviation."""
    torch.manual_seed(0)
    dense = nn.Sequential(Residual(shortcut=True), nn.Conv2d(8, 2, 3)).double().eval()
    x = images(32)
    block = dense[0]
    with torch.no_grad():
        stem = torch.relu(block.stem(x))
        shortcut, branch = block.down(stem), block.conv2(torch.relu(block.conv1(stem)))
        wanted = torch.tensor(shares).repeat(8)[:8] * (shortcut.std((0, 2, 3)) / branch.std((0, 2, 3)))
        block.norm.weight.copy_(wanted * (block.norm.running_var + block.norm.eps).sqrt())
    dense, pruned, units = networks(dense, seed=2)
    name = next(unit.name for unit in units.values() if any(m.module == '0.conv2' for m in unit.producers))
    keep = units[name].indices
    assert len(keep) < 8 and {place % 2 for place in keep} == {0, 1}
    repaired(dense, pruned, units, x)
    with torch.no_grad():
        stem = torch.relu(pruned[0].stem(x))
        left, middle = pruned[0].down(stem), torch.relu(pruned[0].conv1(stem))
        assert (shortcut[:, keep] - left).std() > 0.01 * shortcut.std()
        target = branch[:, keep].clone()
        for place, channel in enumerate(keep):
            if shares[channel % len(shares)] > 0.01:
                target[:, place] += (shortcut[:, channel] - left[:, place]) / wanted[channel]
    columns = nn.functional.unfold(middle, 3, padding=1).transpose(0, 1).flatten(1)
    matrix = torch.cat([columns, torch.ones_like(columns[:1])]).T
    expected = torch.linalg.lstsq(matrix, target.transpose(0, 1).flatten(1).T, driver='gelsd').solution[:-1].T
    torch.testing.assert_close(pruned[0].conv2.weight.detach().flatten(1), expected, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- what it leaves alone


def test_nothing_is_lost_nothing_changes():
    torch.manual_seed(0)
    dense = Residual()
    units = trace_units(dense, torch.randn(1, *SIZE))
    for unit in units.prunable.values():
        unit.choose(range(unit.num_channels))
    pruned = slim(copy.deepcopy(dense), units)
    report = repair_least_squares(pruned, dense, units, images(8).float().split(4), 8, quiet=True)
    assert report == RepairReport(0, {}, {})
    for name, value in pruned.state_dict().items():
        torch.testing.assert_close(value, dense.state_dict()[name], rtol=0, atol=1e-6)


def test_layers_that_read_what_the_dense_ones_read_stay():
    torch.manual_seed(0)
    dense, pruned, units = networks(KINDS['strided'](), only='layers.1')
    before = copy.deepcopy(pruned.state_dict())
    report = repaired(dense, pruned, units, images(24), ridge=1e-3)
    assert list(report.layers) == ['layers.1', 'layers.2']
    assert report.layers['layers.1'].after < 1e-12
    for name in ('layers.0.weight', 'layers.1.weight', 'layers.3.weight', 'layers.3.bias'):
        torch.testing.assert_close(pruned.state_dict()[name], before[name], rtol=0, atol=1e-6)
    assert not torch.equal(pruned.state_dict()['layers.2.weight'], before['layers.2.weight'])


@pytest.mark.parametrize('name', TOYS)
def test_every_topology(name):
    """Nothing but weights and batch statistics changes; what cannot be repaired is named."""
    net = TOYS[name].build()
    units = trace_units(net, TOYS[name].example(1))
    choose(units, 1, 2)
    pruned = slim(copy.deepcopy(net), units)
    state = copy.deepcopy(net.state_dict())
    flags, forwards = ([vars(module).get(name) for module in pruned.modules()] for name in ('training', 'forward'))
    generator = torch.random.get_rng_state()
    report = repair_least_squares(pruned, net, units, [TOYS[name].example(2, seed) for seed in range(3)], 5, quiet=True)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert flags == [module.training for module in pruned.modules()]
    assert forwards == [vars(module).get('forward') for module in pruned.modules()]
    assert not any('forward' in vars(module) for module in net.modules())
    assert not set(report.layers) & set(report.skipped)
    for error in report.layers.values():
        assert error.after <= error.before * (1 + 1e-3) + 1e-5
    outputs_of(pruned(TOYS[name].example(2)))


# ---------------------------------------------------------------- data


def test_by_the_seed():
    torch.manual_seed(0)
    dense, pruned, units = networks(KINDS['grouped']())
    weights = []
    for seed in (0, 0, 1):
        work = copy.deepcopy(pruned)
        repaired(dense, work, units, images(24), positions=0.3, seed=seed)
        weights.append(work.layers[2].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_positions_that_say_no_more_are_not_looked_at(monkeypatch):
    torch.manual_seed(0)
    dense, pruned, units = networks(KINDS['strided']())
    samples: dict[Moments, int] = {}

    def add(moments: Moments, values: Tensor) -> None:
        samples[moments] = samples.get(moments, 0) + values.shape[1]
        original(moments, values)
    original = Moments.add
    monkeypatch.setattr(Moments, 'add', add)
    monkeypatch.setattr('mmprune_ext.repair.least_squares.SAMPLES', 10)
    monkeypatch.setattr('mmprune_ext.repair.least_squares.FEWEST', 200)
    repaired(dense, pruned, units, images(40))
    wanted = {moments: max(10 * moments.inputs, 200) for moments in samples}
    # The same positions of each of 40 images, or all there are.
    assert all(count < wanted[moments] + 40 for moments, count in samples.items())
    assert sum(count >= wanted[moments] for moments, count in samples.items()) >= 2


def test_so_many_images_and_no_more():
    torch.manual_seed(0)
    dense, pruned, units = networks(KINDS['strided']())
    one, other = copy.deepcopy(pruned), copy.deepcopy(pruned)
    x = images(60)
    assert repair_least_squares(one, dense, units, x.split(16), 40, quiet=True).num_images == 40
    assert repair_least_squares(other, dense, units, [x[:40]], 100, quiet=True).num_images == 40
    for first, second in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_with_little_memory_layers_of_large_maps_take_fewer_images(monkeypatch):
    torch.manual_seed(0)
    dense, pruned, units = networks(nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=3), nn.Conv2d(8, 8, 2), nn.Conv2d(8, 4, 1)))
    monkeypatch.setattr('mmprune_ext.repair.least_squares.MEMORY', 8 * 8 * 6 * 6 * 2 * 20)
    monkeypatch.setattr('mmprune_ext.repair.passes.IMAGES', 8)
    x = images(64)
    report = repaired(dense, pruned, units, x)
    assert report.num_images == 64
    counts = {}
    for path in ('1', '2', '3'):
        for count in range(8, 65, 8):
            [(read, _)], [(_, wanted)] = calls(pruned, path, x[:count]), calls(dense, path, x[:count])
            weight, _ = solved(pruned.get_submodule(path), [read], [at_kept(units, path, wanted, 1)])
            if torch.allclose(weight, pruned.get_submodule(path).weight, rtol=1e-7, atol=1e-8):
                counts[path] = count
    assert counts['1'] < counts['2'] <= counts['3'] == 64


@pytest.mark.parametrize(('options', 'message'), [
    ({'num_images': 0}, 'num_images should be an integer of at least 1, but got 0'),
    ({'num_images': 2.0}, 'num_images should be an integer of at least 1, but got 2.0'),
    ({'num_images': True}, 'num_images should be an integer of at least 1, but got True'),
    ({'ridge': -1}, 'ridge should be a number of at least 0, but got -1'),
    ({'ridge': float('nan')}, 'ridge should be a number of at least 0, but got nan'),
    ({'ridge': '1'}, "ridge should be a number of at least 0, but got '1'"),
    ({'positions': 0}, 'positions is a share, above 0 and at most 1, but got 0'),
    ({'dataloader': []}, 'the dataloader gave no image')])
def test_what_cannot_work(options, message):
    dense, pruned, units = networks(KINDS['strided']())
    with pytest.raises(ConfigError, match=message):
        repair_least_squares(pruned, dense, units, **{'dataloader': [images(2)], **options})
