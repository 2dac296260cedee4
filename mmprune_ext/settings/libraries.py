"""Configs that the task libraries ship, whatever distribution the library was installed from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from mmprune_ext.errors import ConfigError


def library_config(path: str) -> Path:
    """Return the file of a config that a library ships, ``mmdet::retinanet/...py``.

    mmengine's own look-up goes by the name of the distribution, and misses libraries that are
    installed under another one.

    Raises:
        ConfigError: If the library is not installed.
    """
    library, _, name = path.partition('::')
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f'config {path}: library "{library}" is not installed')
    return Path(spec.submodule_search_locations[0]) / '.mim' / 'configs' / name


def find_by_module_name() -> None:
    """Let ``_base_ = 'mmseg::...'`` find a library that was installed under another name.

    mmengine asks for the distribution (mmsegmentation); where that is missing and the module is
    there, it is told to ask for the module.
    """
    for module, package in MODULE2PACKAGE.items():
        if not is_installed(package) and is_installed(module):
            MODULE2PACKAGE[module] = module
