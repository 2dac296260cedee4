"""Write requirements/constraints.txt from the environment whose python runs this file.

Run it after a change of pins, in an environment that passes the tests:
`"$(bash tools/setup_env.sh | tail -n 1)" requirements/freeze.py`. A version that an older Python
cannot install (its Requires-Python) gets a marker, so that pip is free to choose there.
"""
import re
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

FOLDER = Path(__file__).resolve().parent
PYTHONS = ('3.10', '3.11', '3.12')
# Pinned in build.txt, or not a dependency.
LEFT_OUT = {'pip', 'setuptools', 'wheel', 'mmprune-ext'}


def line_of(distribution: metadata.Distribution) -> str | None:
    """Return the constraint of one installed distribution, None if it is left out."""
    name = re.sub(r'[-_.]+', '-', distribution.metadata['Name']).lower()
    if name in LEFT_OUT:
        return None
    version = distribution.version.split('+')[0]  # the local part names a build (CPU, CUDA), not a version
    requires = SpecifierSet(distribution.metadata.get('Requires-Python') or '')
    fit = [python for python in PYTHONS if f'{python}.99' in requires]
    marker = '' if len(fit) == len(PYTHONS) else f' ; python_version >= "{fit[0]}"'
    return f'{name}=={version}{marker}'


def main() -> None:
    lines = sorted({line for line in map(line_of, metadata.distributions()) if line})
    head = '# Written by requirements/freeze.py from the reference environment; do not edit.\n'
    (FOLDER / 'constraints.txt').write_text(head + '\n'.join(lines) + '\n', encoding='utf-8')
    print(f'{len(lines)} constraints')


if __name__ == '__main__':
    main()
