"""The kinds of model sections, and what architecture each stands for."""
from __future__ import annotations

import copy

import pytest

from mmprune_ext.compact import CompactModel
from mmprune_ext.errors import ConfigError
from mmprune_ext.model_config import (
    architecture_of,
    compact_section,
    is_compact,
    is_distilled,
    is_pruning,
    take_student,
    with_settings,
    with_teachers,
)

DENSE = dict(type='Net', backbone=dict(type='B', depth=3), heads=[dict(type='H')], test_cfg=None)


@pytest.mark.parametrize('architecture', [
    DENSE, dict(DENSE, init_cfg=[dict(type='Constant')]), dict(DENSE, units=4, architecture='deep')],
    ids=['plain', 'own init_cfg', 'keys of the section'])
def test_a_compact_section_stands_for_its_architecture(architecture):
    before = copy.deepcopy(architecture)
    section = compact_section(architecture, 'units.json', 'compact.pth')
    assert architecture_of(section) == architecture == before
    assert is_compact(section) and not is_pruning(section)
    assert section['units'] == 'units.json'
    assert section['init_cfg'] == dict(type='Pretrained', checkpoint='compact.pth')
    for key in ('backbone', 'heads', 'test_cfg'):
        assert section[key] == architecture[key]
    # Changes of one do not reach the other.
    section['backbone']['depth'] = 9
    assert architecture['backbone']['depth'] == 3


def test_the_type_alone_where_nothing_collides():
    assert compact_section(DENSE, 'u', 'c')['architecture'] == 'Net'


def test_kinds():
    run = dict(type='mmprune_ext.L1Norm', architecture=DENSE)
    assert is_pruning(run) and not is_compact(run) and architecture_of(run) is DENSE
    assert not is_pruning(DENSE) and not is_compact(DENSE) and architecture_of(DENSE) is DENSE
    assert is_compact(dict(type='CompactModel')) and is_compact(dict(type=CompactModel))


def test_former_sections_take_settings_at_both_levels():
    """Version 0.1 wrote the architecture one level down; what the libraries set, they set at the top."""
    section = dict(type='mmprune_ext.CompactModel', architecture=DENSE, units='u', train_cfg=None,
                   backbone=dict(depth=5), heads=[])
    assert architecture_of(section) == dict(
        type='Net', backbone=dict(type='B', depth=5), heads=[], test_cfg=None, train_cfg=None)
    assert DENSE['backbone'] == dict(type='B', depth=3)


def test_settings_of_a_named_type():
    assert with_settings('Net', dict(depth=3)) == dict(type='Net', depth=3)


def test_a_student_stands_for_the_section_beside_teachers():
    run = dict(type='mmprune_ext.L1Norm', architecture=DENSE)
    section = dict(type='mmprune_ext.Distilled', student=run, teachers=[], temperature=3)
    assert is_distilled(section) and not is_distilled(run) and architecture_of(section) is DENSE
    config = dict(model=section, work_dir='w')
    take_student(config)
    assert config['model'] is run
    with_teachers(config)
    assert config == dict(model=section, work_dir='w')
    for plain in (dict(model=run), dict()):
        before = copy.deepcopy(plain)
        take_student(plain)
        with_teachers(plain)
        assert plain == before


def test_teachers_without_a_student():
    with pytest.raises(ConfigError, match='a Distilled needs a student, the model section that is trained, but got'):
        take_student(dict(model=dict(type='Distilled', teachers=[])))
