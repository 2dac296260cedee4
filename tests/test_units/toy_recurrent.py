"""Toy nets: recurrent layers lose inputs; their own width is a part of their state."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.test_units.toy_base import F, Reason, ToyNet, conv

OUT = (3, Reason.OUTPUT)


class RecurrentLevels(ToyNet):
    """A GRU of two levels reads the columns of a map."""

    units = {'a': (6, None), 'rnn': (5, Reason.LAYER), 'b': (7, None), 'head': OUT}
    members = {'a': 'a[0:6] |  | rnn[0:6]', 'rnn': 'rnn[0:5] |  | b[0:5]'}
    kind: ClassVar = (nn.GRU, dict(num_layers=2))
    given: ClassVar[int] = 5

    def __init__(self) -> None:
        super().__init__()
        kind, options = self.kind
        self.a, self.rnn = conv(3, 6), kind(6, 5, batch_first=True, **options)
        self.b, self.head = nn.Linear(self.given, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).mean(2).transpose(1, 2)
        return self.head(F.relu(self.b(self.rnn(x)[0])))


class RecurrentBothWays(RecurrentLevels):
    """An LSTM in both directions: outputs of two times its width."""

    units = {'a': (6, None), 'rnn': (10, Reason.LAYER), 'b': (7, None), 'head': OUT}
    members = {'a': 'a[0:6] |  | rnn[0:6]', 'rnn': 'rnn[0:10] |  | b[0:10]'}
    kind = (nn.LSTM, dict(bidirectional=True))
    given = 10


class RecurrentProjected(RecurrentLevels):
    """An LSTM whose outputs are projected."""

    units = {'a': (6, None), 'rnn': (4, Reason.LAYER), 'b': (7, None), 'head': OUT}
    members = {'rnn': 'rnn[0:4] |  | b[0:4]'}
    kind = (nn.LSTM, dict(proj_size=4))
    given = 4


class RecurrentPacked(RecurrentLevels):
    """Sequences of different lengths, packed and not sorted, in both directions."""

    units = {'a': (6, None), 'rnn': (10, Reason.LAYER), 'b': (7, None), 'head': OUT}
    members = {'a': 'a[0:6] |  | rnn[0:6]', 'rnn': 'rnn[0:10] |  | b[0:10]'}
    kind = (nn.GRU, dict(bidirectional=True))
    given = 10

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).mean(2).transpose(1, 2)
        lengths = torch.arange(len(x)) % x.shape[1] + 3
        x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(F.relu(self.b(pad_packed_sequence(self.rnn(x)[0], batch_first=True)[0])))


class RecurrentCell(ToyNet):
    """A cell in a loop of the code's own."""

    units = {'a': (6, None), 'cell': (5, Reason.LAYER), 'head': OUT}
    members = {'a': 'a[0:6] |  | cell[0:6]'}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell, self.head = conv(3, 6), nn.GRUCell(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 5)
        for column in F.relu(self.a(x)).mean(2).unbind(-1):
            state = self.cell(column, state)
        return self.head(state)
