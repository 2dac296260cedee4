"""Configs and tools that libraries ship, this package among them, whatever distribution they were installed from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

import mmprune_ext
from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import SCOPE


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
    return (Path(spec.submodule_search_locations[0]) / '.mim' / 'configs' / name).resolve()


def shipped(name: str) -> Path:
    """Return a file that this package ships, such as ``tools/train.py`` or ``configs/demo/scenes_pose.py``.

    Raises:
        ConfigError: If there is none of that name.
    """
    path = Path(mmprune_ext.__file__).parent / '.mim' / name
    if not path.is_file():
        raise ConfigError(f'{path}: no such file; the installation of {SCOPE} lacks its configs and tools: install it '
                          'anew, by pip from a wheel or from a checkout that kept the links in mmprune_ext/.mim')
    return path.resolve()


def drop_own_scope(config: Config) -> None:
    """Undo what mmengine makes of ``_base_ = 'mmprune_ext::...'``.

    It takes the names in such a base for names of the library that the base is from. Those in this package's configs
    are names of the task's library, as the config's ``default_scope`` says.
    """
    if f'{SCOPE}::' in config.text:
        _drop_scope(list(config.values()))


def _drop_scope(value: Any) -> None:
    if isinstance(value, dict):
        if value.get('_scope_') == SCOPE:
            del value['_scope_']
        for item in value.values():
            _drop_scope(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _drop_scope(item)


def find_by_module_name() -> None:
    """Let ``_base_ = 'mmseg::...'`` find a library that was installed under another name.

    mmengine asks for the distribution (mmsegmentation); where that is missing and the module is
    there, it is told to ask for the module.
    """
    for module, package in MODULE2PACKAGE.items():
        if not is_installed(package) and is_installed(module):
            MODULE2PACKAGE[module] = module
