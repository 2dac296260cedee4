"""Image folders on disk for mmpretrain's CustomDataset: embedded digits, unpacked sheets."""
from mmprune_ext.datasets.digits import write_digits
from mmprune_ext.datasets.folders import write_class_folders
from mmprune_ext.datasets.sheets import unpack_sheets

__all__ = ['unpack_sheets', 'write_class_folders', 'write_digits']
