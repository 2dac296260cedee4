"""Batch normalisation is folded into convolutions only where the model stays the same function."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmprune_ext.evaluation.folding import folded


class Network(BaseModel):
    """A convolution and its batch normalisation, which run in this order or in the other one."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.norm_first = norm_first
        generator = torch.Generator().manual_seed(0)
        for tensor in (*self.bn.parameters(), self.bn.running_mean, self.bn.running_var):
            tensor.data.copy_(torch.rand(4, generator=generator) + 0.5)

    def forward(self, inputs: Tensor, data_samples: object = None, mode: str = 'tensor') -> Tensor:
        first, second = (self.bn, self.conv) if self.norm_first else (self.conv, self.bn)
        return second(first(inputs))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return {'inputs': torch.rand(2, 4, 5, 5)}


def test_a_convolution_takes_its_batch_norm(batch):
    model = Network().eval()
    other = folded(model, batch)
    assert isinstance(other.bn, nn.Identity) and isinstance(model.bn, nn.BatchNorm2d)
    torch.testing.assert_close(other(**batch), model(**batch))


def test_a_batch_norm_that_runs_before_the_convolution_stays(batch):
    assert folded(Network(norm_first=True).eval(), batch) is None


def test_there_is_nothing_to_fold(batch):
    model = Network().eval()
    model.bn = nn.GroupNorm(2, 4)
    assert folded(model, batch) is None
