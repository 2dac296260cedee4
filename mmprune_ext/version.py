"""Version of mmprune_ext and the check of the libraries it stands on."""
import re
from importlib import import_module, metadata
from importlib.util import find_spec

__version__ = '0.2.0'

FIX = 'bash tools/setup_env.sh'

# module -> (distributions that provide it, lowest version). Each module of OpenMMLab has two
# distributions: its own and the maintained continuation under the same import name.
REQUIRED: dict[str, tuple[tuple[str, ...], str]] = {
    'torch': (('torch', ), '2.0'),
    'mmengine': (('onedl-mmengine', 'mmengine', 'mmengine-lite'), '0.10'),
    'mmcv': (('onedl-mmcv', 'mmcv', 'mmcv-lite'), '2.0.1'),
}
# Checked only where installed: a user of one task need not have the other three.
OPTIONAL: dict[str, tuple[tuple[str, ...], str]] = {
    'mmpretrain': (('onedl-mmpretrain', 'mmpretrain'), '1.0'),
    'mmdet': (('onedl-mmdetection', 'mmdet'), '3.0'),
    'mmseg': (('onedl-mmsegmentation', 'mmsegmentation'), '1.0'),
    'mmpose': (('onedl-mmpose', 'mmpose'), '1.0'),
}


def release(version: str) -> tuple[int, ...]:
    """Return the release numbers of a version, `(2, 11, 0)` of `2.11.0+cu130` and of `2.11.0rc1`."""
    match = re.match(r'v?(\d+(?:\.\d+)*)', version)
    if match is None:
        raise ValueError(f'not a version: {version!r}')
    return tuple(int(number) for number in match.group(1).split('.'))


def installed_version(module: str, distributions: tuple[str, ...]) -> str | None:
    """Return the version of an importable module, None if there is none.

    Reads the distribution's metadata, which costs no import; a module that lies on the path without
    a distribution (a source tree) is imported and asked.
    """
    if find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return getattr(import_module(module), '__version__', '0')


def check_versions() -> None:
    """Compare what is installed with REQUIRED and OPTIONAL.

    Raises:
        ImportError: one message with every module that is missing or too old and how to fix it.
    """
    problems = []
    for table, needed in ((REQUIRED, True), (OPTIONAL, False)):
        for module, (distributions, minimum) in table.items():
            found = installed_version(module, distributions)
            if found is None and needed:
                problems.append(f'{module}: found none, needs >= {minimum}')
            elif found is not None and release(found) < release(minimum):
                problems.append(f'{module}: found {found}, needs >= {minimum}')
    if problems:
        raise ImportError(f'mmprune_ext {__version__} cannot work with this environment. '
                          + '; '.join(problems)
                          + f'. Fix: run `{FIX}` in the checkout of mmprune_ext and use the python it prints.')
