"""Arguments that several commands take."""
import argparse

import pytest

from mmprune_ext.cli import arguments


@pytest.fixture
def parser():
    made = argparse.ArgumentParser('tool')
    arguments.config_arguments(made)
    made.add_argument('--positive', type=arguments.positive)
    made.add_argument('--not-negative', type=arguments.not_negative)
    return made


def test_settings_are_read_as_mmengine_reads_them(parser):
    args = parser.parse_args(['a.py', '--cfg-options', 'a.b=1', 'c=[1,(2,x)]', 'd=e=f', '--positive', '1',
                              '--not-negative', '0'])
    assert args.cfg_options == {'a.b': 1, 'c': [1, (2, 'x')], 'd': 'e=f'}
    assert (args.positive, args.not_negative) == (1, 0)
    assert parser.parse_args(['a.py']).cfg_options == {}


@pytest.mark.parametrize(('given', 'message'), [
    (['--cfg-options', 'a'], 'expected KEY=VALUE, got "a"'), (['--cfg-options', '=1'], 'expected KEY=VALUE, got "=1"'),
    (['--cfg-options', 'a=(1,(2)'], 'a=(1,(2): '), (['--positive', '0'], 'expected an integer of at least 1, got 0'),
    (['--not-negative', '-1'], 'expected an integer of at least 0, got -1'),
])
def test_what_cannot_be_read_is_told(parser, given, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(['a.py', *given])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('flag', ['--local-rank=1', '--local_rank=1'])
def test_launch_of_torch_adds_an_argument(parser, flag):
    arguments.launcher_arguments(parser)
    args = parser.parse_args(['a.py', '--launcher', 'pytorch', flag])
    assert (args.launcher, args.local_rank) == ('pytorch', 1)
    assert 'local' not in parser.format_help()


@pytest.mark.parametrize(('text', 'value'), [(None, None), ('0.5', 0.5), ('a.json', 'a.json')])
def test_number_or_text(text, value):
    assert arguments.number_or_text(text) == value
