"""Arguments that several commands take."""
import argparse

import pytest

from mmprune_ext.cli import arguments
from mmprune_ext.cli.commands import deploy, prune, repair, test


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


@pytest.mark.parametrize(('command', 'given'), [
    (deploy, ['c.py', '-o', 'out', 'w.pth']), (deploy, ['-o', 'out', 'c.py', 'w.pth']),
    (deploy, ['-o', 'out', 'c.py', '--batch-size', '2', 'w.pth']),
    (repair, ['c.py', '--dense', 'd.py', 'd.pth', '-o', 'out', 'w.pth']),
    (prune, ['c.py', '-o', 'out', 'w.pth', '--algorithm', 'l1', '--flops', '0.5']),
])
def test_a_checkpoint_may_stand_behind_options(command, given):
    args = command.parse_args(given)
    assert (args.config, args.checkpoint, args.output_dir, args.overwrite) == ('c.py', 'w.pth', 'out', False)


def test_weights_to_test_may_stand_behind_options(capsys):
    assert test.parse_args(['c.py', '--json', 'a.json', 'w.pth']).positional == 'w.pth'
    assert deploy.parse_args(['c.py', '-o', 'out']).checkpoint is None
    with pytest.raises(SystemExit):
        deploy.parse_args(['-o', 'out'])
    assert 'the following arguments are required: CONFIG' in capsys.readouterr().err


@pytest.mark.parametrize(('kind', 'text', 'message'), [
    (arguments.share, '50', 'above 0 and at most 1, got 50; did you mean 0.5?'), (arguments.share, '0', 'got 0'),
    (arguments.share, 'nan', 'got nan'), (arguments.share, '120', 'got 120'), (arguments.ratio, '1', 'below 1, got 1'),
    (arguments.ratio, '35', 'below 1, got 35; did you mean 0.35?'), (arguments.ratio, '-0.1', 'got -0.1')])
def test_shares_that_are_none(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        kind(text)
    assert str(raised.value).endswith(message)


def test_shares():
    assert (arguments.share('1'), arguments.ratio('0'), arguments.ratio('[0.]+[0.5]*2')) == (1.0, '0', '[0.]+[0.5]*2')
