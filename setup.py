"""Packaging of mmprune_ext; the pinned reference environment is made by tools/setup_env.sh."""
import re
import tempfile
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
TASKS = ('cls', 'det', 'seg', 'pose')


def requirements(name: str) -> list[str]:
    """Return the requirement lines of requirements/<name>.txt without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith('#')]


def version() -> str:
    """Return the version without importing the package, whose import checks need torch."""
    text = (ROOT / 'mmprune_ext' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE).group(1)


# mmengine, mmcv and torch come in several distributions of the same module, so they are checked at
# import (mmprune_ext/version.py) and not demanded here; pins are for the reference environment only.
install_requires = [re.split(r'[=<>~!]', line)[0] for line in requirements('runtime')
                    if 'mmengine' not in line]
extras = {name: requirements(name) for name in (*TASKS, 'tests', 'docs', 'export')}
extras['all'] = sorted({line for task in TASKS for line in extras[task]})

# Built in a folder of its own: files that are gone from the sources cannot come back from a former build.
with tempfile.TemporaryDirectory() as scratch:
    setup(
        name='mmprune_ext',
        version=version(),
        description='Structured channel pruning for mmpretrain, mmdetection, mmsegmentation and mmpose',
        long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
        long_description_content_type='text/markdown',
        license='Apache-2.0',
        keywords='pruning, model compression, computer vision, OpenMMLab, PyTorch',
        classifiers=[
            'Development Status :: 4 - Beta',
            'Intended Audience :: Developers',
            'Intended Audience :: Science/Research',
            'Operating System :: POSIX',
            'Programming Language :: Python :: 3',
            'Programming Language :: Python :: 3.10',
            'Programming Language :: Python :: 3.11',
            'Programming Language :: Python :: 3.12',
            'Topic :: Scientific/Engineering :: Artificial Intelligence',
        ],
        packages=find_packages(include=('mmprune_ext', 'mmprune_ext.*')),
        # Links to configs, tools and model-index.yml, where OpenMMLab's libraries keep theirs: mim and mmengine
        # find them in a checkout as in an installation, which gets the files themselves.
        package_data={'mmprune_ext': ['.mim/**/*']},
        exclude_package_data={'mmprune_ext': ['*.py[co]']},
        entry_points={'console_scripts': ['mmprune = mmprune_ext.cli.main:main']},
        python_requires='>=3.10,<3.13',
        install_requires=install_requires,
        extras_require=extras,
        zip_safe=False,
        options={'build': {'build_base': scratch}, 'egg_info': {'egg_base': scratch}},
    )
