"""The shortcut without weights of CIFAR ResNets (option A of He et al., arXiv 1512.03385, 3.3)."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmprune_ext.registry import MODELS

ZERO = -1  # an output channel that no input channel reaches


@MODELS.register_module()
class ZeroPadShortcut(BaseModule):
    """Subsample an activation and put zero channels around its channels.

    Input `(..., in_channels, H, W)`, output
    `(..., out_channels, ceil(H / stride), ceil(W / stride))`. Input channel `i` becomes output
    channel `i + (out_channels - in_channels) // 2`; the other output channels are zero. `prune`
    removes input and output channels independently of each other.

    There is nothing to learn and nothing in the state dict: `sources` is the whole state. A compact
    model gets it back from the choices in its channel-unit file, and a checkpoint of the dense
    network loads as it is.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels, at least `in_channels`.
        stride: step of the subsampling in H and W.
        init_cfg: as in every OpenMMLab module; there are no weights, so it has no effect.

    Attributes:
        sources: for each output channel the input channel that it carries, `ZERO` for none.

    Raises:
        ValueError: a size is below 1, or there are fewer output than input channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if not (1 <= in_channels <= out_channels and stride >= 1):
            raise ValueError('ZeroPadShortcut needs 1 <= in_channels <= out_channels and '
                             f'stride >= 1, got {in_channels}, {out_channels} and {stride}')
        self.stride = stride
        self.in_channels = in_channels
        first = (out_channels - in_channels) // 2
        # Moves with the module to its device; derived from `sources`, so not in the state dict.
        self.register_buffer('_index', torch.empty(0, dtype=torch.int64), persistent=False)
        self._set_sources([j - first if first <= j < first + in_channels else ZERO
                           for j in range(out_channels)])

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return len(self.sources)

    def prune(self, in_keep: Tensor, out_keep: Tensor) -> None:
        """Keep some input and some output channels, in place.

        Both are counted in the module's present channels, so pruning twice composes. An output
        channel whose input channel is gone becomes zero.

        Args:
            in_keep: int64, `(n,)`, ascending: the input channels that stay.
            out_keep: int64, `(m,)`, ascending: the output channels that stay.

        Raises:
            ValueError: an index list is empty, not ascending, or out of range.
        """
        kept_in = _checked('in_keep', in_keep, self.in_channels)
        kept_out = _checked('out_keep', out_keep, self.out_channels)
        position = {channel: new for new, channel in enumerate(kept_in)}
        self.in_channels = len(kept_in)
        self._set_sources([position.get(self.sources[j], ZERO) for j in kept_out])

    def forward(self, x: Tensor) -> Tensor:
        """Return the padded, subsampled activation (shapes: see the class)."""
        if self.stride > 1:
            x = x[..., ::self.stride, ::self.stride]
        if self._plain_pad:
            after = self.out_channels - self.in_channels - self._before
            return F.pad(x, (0, 0, 0, 0, self._before, after))
        # One zero channel behind the last: what every output without an input reads.
        return F.pad(x, (0, 0, 0, 0, 0, 1)).index_select(-3, self._index)

    def extra_repr(self) -> str:
        connected = sum(source != ZERO for source in self.sources)
        return (f'{self.in_channels}, {self.out_channels}, stride={self.stride}, '
                f'connected={connected}')

    def _set_sources(self, sources: Sequence[int]) -> None:
        """Set the channel map and what forward derives from it."""
        self.sources = tuple(sources)
        self._before = self.sources.index(0) if 0 in self.sources else 0
        run = self.sources[self._before:self._before + self.in_channels]
        connected = sum(source != ZERO for source in self.sources)
        # All input channels in one run: F.pad alone, no copy by index.
        self._plain_pad = run == tuple(range(self.in_channels)) and connected == self.in_channels
        self._index = torch.tensor([self.in_channels if source == ZERO else source
                                    for source in self.sources], device=self._index.device)


def _checked(name: str, keep: Tensor, channels: int) -> list[int]:
    """Return `keep` as a list after checking that it names some of `channels` in order."""
    kept = torch.as_tensor(keep).tolist()
    ascending = all(a < b for a, b in zip(kept, kept[1:], strict=False))
    if not kept or not ascending or kept[0] < 0 or kept[-1] >= channels:
        raise ValueError(f'ZeroPadShortcut.prune: {name} must be ascending channel indices in '
                         f'[0, {channels}), at least one, got {kept}')
    return kept
