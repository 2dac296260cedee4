"""model-index.yml, which mim reads, lists the configs and repeats only what they and the docs state."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mmprune_ext.settings.reading import read_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs' / 'pruning').rglob('*.py')}
ARXIV = r'https://arxiv\.org/abs/\d{4}\.\d{5}'
# Rows of the tables of sizes: which network, then its parameters and multiply-accumulates. L1's configs do round 1,
# one of the paper's models, or rounds 1 to 5.
ROWS = [*(('l1.md', f'l1_{{}}_cifar10{end}', rf'\| (\w+) \| {label} \| ([\d,]+) \| ([\d,]+) \|')
          for label, end in {'1': '', 'A': '_a', 'B': '_b', '5': '_rounds5'}.items()),
        ('l1.md', '{}', r'\| `(\w+)\.py` \| ([\d,]+) \| ([\d,]+) \|'),
        ('chip.md', '{}', r'\| `(\w+)\.py` \| ([\d,]+) \| [^|]+ \| ([\d,]+) \|'),
        ('dcff_sizes.md', '{}', r'\| [^|]+ \| \[(\w+)\]\(\S+\) \| ([\d,]+) \| [^|]+ \| ([\d,]+) \|')]


@pytest.fixture(scope='module')
def index() -> Any:
    return pytest.importorskip('modelindex.load_model_index').load(str(ROOT / 'model-index.yml'))


def printed_costs() -> dict[str, tuple[int, int]]:
    found = {}
    for page, name, row in ROWS:
        for network, *costs in re.findall(f'^{row}', (ROOT / 'docs' / page).read_text(), re.MULTILINE):
            params, macs = (int(cost.replace(',', '')) for cost in costs)
            found[name.format(network)] = params, macs
    return found


def test_every_pruning_config_is_listed(index):
    assert index.check(silent=True) == []
    assert sorted(model.config for model in index.models) == sorted(CONFIGS)
    for model in index.models:
        # mim finds a config by its name, and its metafile beside it.
        assert model.name == Path(model.config).stem
        assert Path(model.filepath).parent == ROOT / Path(model.config).parent
        assert model.weights is None, 'none are published'


def test_collections_name_the_papers_of_the_docs(index):
    collections = {collection.name: collection.paper for collection in index.collections}
    assert {model.in_collection for model in index.models} == set(collections)
    names = ('l1', 'chip', 'chipnet', 'dcff', 'fisher', 'obs', 'stripe')
    pages = [(ROOT / 'docs' / f'{name}.md').read_text() for name in names]
    for paper in collections.values():
        assert re.fullmatch(ARXIV, paper['URL'])
        page, = (page for page in pages if paper['URL'] in page)
        assert paper['Title'] in ' '.join(page.split())


def test_sizes_are_those_that_the_docs_print(index):
    printed = printed_costs()
    assert len(printed) > 25
    for model in index.models:
        stated = model.metadata.data.get('Parameters'), model.metadata.data.get('FLOPs')
        # The compact form of a network, and other files of the same images, change no size.
        network = model.name.replace('_compact_', '_').removesuffix('_batches')
        assert stated == printed.get(network, (None, None)), model.name


def test_length_of_training_is_that_of_the_config(index):
    for model in index.models:
        if '_compact_' in model.name:  # tested, or trained on as long as the user likes
            continue
        library = Path(model.config).parts[2]
        pytest.importorskip({'mmcls': 'mmpretrain'}.get(library, library))
        loop = read_config(str(ROOT / model.config)).train_cfg
        stated = model.metadata.data
        assert stated.get('Epochs') == loop.get('max_epochs'), model.name
        assert stated.get('Iterations') == loop.get('max_iters'), model.name
