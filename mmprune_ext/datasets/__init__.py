"""Small data on disk for the task libraries: drawn scenes, embedded digits, unpacked sheets."""
from mmprune_ext.datasets.digits import write_digits
from mmprune_ext.datasets.folders import write_class_folders
from mmprune_ext.datasets.scenes import write_scenes
from mmprune_ext.datasets.sheets import unpack_sheets

__all__ = ['unpack_sheets', 'write_class_folders', 'write_digits', 'write_scenes']
