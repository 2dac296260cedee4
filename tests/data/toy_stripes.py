"""A classification set of striped images, made in memory; a network of a few channels learns it."""
import torch
from mmengine.registry import DATASETS
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset


@DATASETS.register_module()
class ToyStripes(Dataset):
    """Images (3, 16, 16) in uint8 with horizontal (class 0) or vertical (class 1) stripes in noise."""

    METAINFO = {'classes': ('horizontal', 'vertical')}

    def __init__(self, length: int = 32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        stripes = (torch.arange(16) % 4 < 2).float() * 160
        self.images = torch.randint(0, 96, (length, 3, 16, 16), generator=generator).float()
        self.images[0::2] += stripes[:, None]
        self.images[1::2] += stripes[None, :]
        self.metainfo = self.METAINFO

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        sample = DataSample().set_gt_label(index % 2)
        sample.set_metainfo({'sample_idx': index, 'num_classes': 2})
        return {'inputs': self.images[index].byte(), 'data_samples': sample}
