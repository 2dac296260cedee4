"""Small networks that say by hand where a gate multiplies the channels of each of their units."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

SIZE = (8, 8)
Gates = Mapping[str, Tensor]


class Network(BaseModel):
    """A classifier of four classes whose loss is the mean of its samples' cross entropies.

    `gates` names the units that a gate multiplies; `network(x, gates)` multiplies them.
    """

    gates: tuple[str, ...] = ()

    def network(self, x: Tensor, gates: Gates) -> Tensor:
        raise NotImplementedError

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        found = self.network(inputs, {})
        return {'loss': F.cross_entropy(found, data_samples)} if mode == 'loss' else found


def gated(x: Tensor, gates: Gates, name: str, dim: int = 1) -> Tensor:
    if name not in gates:
        return x
    shape = [1] * x.dim()
    shape[dim] = -1
    return x * gates[name].view(shape)


class Residual(Network):
    """The stem and two branches make one sum; its gate stands where each of them leaves its normalisation."""

    gates = ('stem', 'first.0', 'second.0')

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.first, self.second = (nn.Sequential(
            nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(True), nn.Conv2d(5, 6, 3, padding=1),
            nn.BatchNorm2d(6)) for _ in range(2))
        self.fc = nn.Linear(6, 4)

    def network(self, x: Tensor, gates: Gates) -> Tensor:
        x = gated(self.norm(self.stem(x)), gates, 'stem').relu_()
        for name in ('first', 'second'):
            branch = getattr(self, name)
            inside = gated(branch[:3](x), gates, f'{name}.0')
            x = (x + gated(branch[3:](inside), gates, 'stem')).relu_()
        return self.fc(x.mean((2, 3)))


class SharedHead(Network):
    """Two levels of a pyramid are read by the same layers; the stem's maps are read by two layers."""

    gates = ('stem', 'lateral.0', 'head')

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.lateral = nn.ModuleList([nn.Conv2d(5, 6, 1), nn.Conv2d(5, 6, 3, 2, 1)])
        self.head, self.out = nn.Conv2d(6, 7, 3, padding=1), nn.Conv2d(7, 4, 1)

    def network(self, x: Tensor, gates: Gates) -> Tensor:
        x = gated(self.stem(x).relu(), gates, 'stem')
        levels = [gated(lateral(x), gates, 'lateral.0') for lateral in self.lateral]
        maps = [self.out(gated(F.silu(self.head(level)), gates, 'head')) for level in levels]
        return sum(found.mean((2, 3)) for found in maps)


class Depthwise(Network):
    """A depthwise layer carries the channels of the stem: their gate stands behind it, once."""

    gates = ('stem', 'point')

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6)
        self.point, self.fc = nn.Conv2d(6, 5, 1), nn.Linear(5, 4)

    def network(self, x: Tensor, gates: Gates) -> Tensor:
        x = F.silu(self.depth(F.silu(self.stem(x))))
        x = F.gelu(self.point(gated(x, gates, 'stem')))
        return self.fc(gated(x.mean((2, 3)), gates, 'point'))


class Flattened(Network):
    """A linear layer reads four positions of each channel."""

    gates = ('stem', 'first')

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first, self.last = nn.Linear(24, 9), nn.Linear(9, 4)

    def network(self, x: Tensor, gates: Gates) -> Tensor:
        x = gated(F.adaptive_avg_pool2d(self.stem(x).relu(), 2), gates, 'stem')
        return self.last(gated(self.first(x.flatten(1)).relu(), gates, 'first'))


class Windows(Network):
    """Each sample is cut into four windows, which the second layer reads as samples of their own."""

    gates = ('stem', 'inside')

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def network(self, x: Tensor, gates: Gates) -> Tensor:
        count = len(x)
        x = gated(self.stem(x).relu(), gates, 'stem')
        x = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        x = gated(self.inside(x).tanh(), gates, 'inside')
        return self.fc(x.mean((2, 3))).unflatten(0, (count, 4)).square().sum(1)


class Sequences(Network):
    """Linear layers read positions first, samples second; queries and keys are read by none."""

    gates = ('stem', 'embed', 'query', 'value')

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.embed = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 7)
        self.query, self.key, self.value = nn.Linear(7, 5), nn.Linear(7, 5), nn.Linear(7, 8)
        self.out = nn.Linear(8, 4)

    def network(self, x: Tensor, gates: Gates) -> Tensor:
        x = gated(self.stem(x), gates, 'stem').flatten(2).permute(2, 0, 1)
        x = gated(self.embed(x), gates, 'embed', -1)
        query, key = (gated(layer(x), gates, 'query', -1).transpose(0, 1) for layer in (self.query, self.key))
        weights = (query @ key.transpose(1, 2)).softmax(-1)
        value = weights @ gated(self.value(x), gates, 'value', -1).transpose(0, 1)
        return self.out(value.transpose(0, 1)).mean(0)


NETWORKS: dict[str, type[Network]] = {
    'residual': Residual, 'shared head': SharedHead, 'depthwise': Depthwise, 'flattened': Flattened,
    'windows': Windows, 'sequences': Sequences}


def network(name: str) -> Network:
    """Return a network in double precision, with statistics that differ from those of any batch."""
    torch.manual_seed(0)
    made = NETWORKS[name]()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made.double()


def batches(*sizes: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{'inputs': torch.randn(size, 3, *SIZE, dtype=torch.float64, generator=generator),
             'data_samples': torch.randint(4, (size,), generator=generator)} for size in sizes]


def by_definition(model: Network, data: list[dict[str, Tensor]], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the sum over samples of the squared derivative by each gate, from one pass a sample."""
    model.eval()
    total = {name: torch.zeros(sizes[name], dtype=torch.float64) for name in model.gates}
    for batch in data:
        for image, label in zip(batch['inputs'], batch['data_samples']):
            gates = {name: torch.ones(sizes[name], dtype=torch.float64, requires_grad=True) for name in model.gates}
            loss = F.cross_entropy(model.network(image[None], gates), label[None])
            for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values()))):
                total[name] += gradient ** 2
    return total
