"""Channel-unit files: what is written is read back, what is wrong is named."""

import copy
import json

import pytest
import torch

from mmprune_ext.errors import PruningError, UnitFileError
from mmprune_ext.units import InitArgs, Reason, UnitSet, fingerprint, slim, trace_units
from tests.test_units.toy_nets import TOYS, toy_layers


@pytest.fixture(scope='module')
def chain():
    """Return the dense chain."""
    return toy_layers.Chain.build()


@pytest.fixture
def units(chain):
    """Return its units."""
    return trace_units(chain, toy_layers.Chain.example(1))


@pytest.fixture
def write(tmp_path, units):
    """Return a function that saves the chain's file after a change, and returns its path."""
    def save(change=lambda content: None):
        content = units.to_json()
        content = change(content) or content
        path = tmp_path / 'units.json'
        path.write_text(json.dumps(content))
        return path
    return save


# ---------------------------------------------------------------- round trip


@pytest.mark.parametrize('name', ['Chain', 'NestedConcat', 'ChannelShuffle', 'TokensWithEmbedding',
                                  'GroupedConv', 'OutputTaps', 'FlattenLinear'])
def test_round_trip(tmp_path, name):
    """All that a unit holds survives: ranges, blocks, indices, parameters, reasons, choices."""
    net = TOYS[name].build()
    units = trace_units(net, TOYS[name].example(1))
    for unit in units.prunable.values():
        unit.choose(range(1, unit.num_channels))
        unit.init_args = InitArgs(2, 1)
    path = tmp_path / 'new folder' / 'units.json'
    units.save(path)
    loaded = UnitSet.load(path)
    assert list(loaded.values()) == list(units.values())
    assert loaded.architecture == units.architecture == fingerprint(net)
    x = TOYS[name].example()
    first, second = (slim(copy.deepcopy(net), u)(x) for u in (units, loaded))
    for a, b in zip(first if isinstance(first, tuple) else [first],
                    second if isinstance(second, tuple) else [second], strict=True):
        assert torch.equal(a, b)


def test_content(units):
    """The file's form is an interface: pinned by hand."""
    units['conv1'].choose([7, 0, 3])
    content = units.to_json()
    assert content['schema'] == 1
    assert content['units']['conv1'] == {
        'num_channels': 8, 'prunable': True, 'keep': 3, 'indices': [0, 3, 7],
        'init_args': {'divisor': 1, 'min_channels': 1},
        'channels': {'producers': [{'module': 'conv1', 'start': 0, 'end': 8}],
                     'followers': [{'module': 'bn1', 'start': 0, 'end': 8}],
                     'consumers': [{'module': 'conv2', 'start': 0, 'end': 8}]}}
    assert content['units']['head']['prunable'] is False
    assert content['units']['head']['reason'] == 'OUTPUT'
    bare = units.to_json(channels=False, init_args=False)['units']['conv1']
    assert bare == {'num_channels': 8, 'prunable': True, 'keep': 3, 'indices': [0, 3, 7]}


def test_file_without_channels(tmp_path, chain, units):
    """It loads, but nothing can be slimmed by it."""
    path = tmp_path / 'bare.json'
    units.save(path, channels=False, init_args=False)
    loaded = UnitSet.load(path)
    assert {u.name: u.num_channels for u in loaded.values()} == {'conv1': 8, 'conv2': 12, 'head': 5}
    with pytest.raises(UnitFileError, match=r'bare.json: the units have no "channels" section; '
                                            r'write it with tools/get_channel_units.py -c'):
        loaded.check(chain, 'bare.json')
    with pytest.raises(UnitFileError, match='no "channels" section'):
        slim(copy.deepcopy(chain), loaded)


def test_keep_without_indices(write):
    """A number alone stands for the first channels."""
    path = write(lambda c: c['units']['conv1'].update(keep=3))
    assert UnitSet.load(path)['conv1'].indices == [0, 1, 2]
    assert UnitSet.load(path)['conv2'].indices is None


def test_indices_are_sorted(write):
    path = write(lambda c: c['units']['conv1'].update(keep=3, indices=[5, 0, 2]))
    assert UnitSet.load(path)['conv1'].indices == [0, 2, 5]


# ---------------------------------------------------------------- malformed files


def unit(**changes):
    """Return a change of unit conv1."""
    return lambda content: content['units']['conv1'].update(changes)


def member(**changes):
    """Return a change of the first producer of unit conv1."""
    return lambda content: content['units']['conv1']['channels']['producers'][0].update(changes)


MALFORMED = {
    'index above': (unit(indices=[0, 8]), r'channel 8 is out of range; indices run from 0 to 7'),
    'index below': (unit(indices=[-1, 2]), r'channel -1 is out of range'),
    'index twice': (unit(indices=[1, 1]), r'the indices of kept channels repeat'),
    'no index': (unit(indices=[]), r'no channel is kept; keep at least one'),
    'index of text': (unit(indices=['a']), r"indices should be integers, got 'a'"),
    'fractional index': (unit(indices=[0.5, 2], keep=2), r'indices should be integers, got 0\.5'),
    'boolean index': (unit(indices=[True, False], keep=2), r'indices should be .* got True'),
    'indices a number': (unit(indices=3), r'malformed'),
    'keep differs': (unit(indices=[0, 1], keep=3), r'keep is 3, but indices lists 2'),
    'keep above': (unit(keep=9), r'keep should be an integer from 1 to 8, got 9'),
    'keep zero': (unit(keep=0), r'keep should be an integer from 1 to 8, got 0'),
    'keep negative': (unit(keep=-2), r'got -2'),
    'keep a share': (unit(keep=0.5), r'got 0\.5'),
    'keep text': (unit(keep='half'), r"got 'half'"),
    'keep true': (unit(keep=True), r'got True'),
    'num_channels zero': (unit(num_channels=0), r'num_channels should be a positive .* got 0'),
    'num_channels text': (unit(num_channels='8'), r"num_channels should be .* got '8'"),
    'num_channels missing': (lambda c: c['units']['conv1'].pop('num_channels') and None,
                             r'malformed: .*num_channels'),
    'num_channels other': (unit(num_channels=7, keep=7),
                           r'range 0\.\.8 of layer "conv1" does not hold 7 channels'),
    'unknown reason': (unit(reason='WEATHER'), r'WEATHER'),
    'divisor zero': (unit(init_args={'divisor': 0}), r'divisor should be an integer of at least 1'),
    'unknown init_args': (unit(init_args={'round': 8}), r'round'),
    'init_args a list': (unit(init_args=[8]), r'malformed'),
    'unknown key': (unit(indexes=[0, 1]), r'indexes'),
    'unit a list': (lambda c: c['units'].update(conv1=[8]), r'malformed'),
    'channels null': (unit(channels=None), r'malformed'),
    'unknown role': (unit(channels={'producer': []}), r'producer'),
    'producers null': (unit(channels={'producers': None}), r'malformed'),
    'member text': (unit(channels={'producers': ['conv1']}), r'malformed'),
    'member without start': (unit(channels={'producers': [{'module': 'conv1', 'end': 8}]}),
                             r'malformed: .*start'),
    'start text': (member(start='zero'), r'zero'),
    'start fractional': (member(start=0.5, end=8.5), r'0\.5'),
    'start below': (member(start=-1, end=7), r'range -1\.\.7 of layer "conv1"'),
    'end before start': (member(start=8, end=0), r'range 8\.\.0 of layer "conv1"'),
    'block zero': (member(end=0, block=0), r'layer "conv1"'),
    'short index': (member(index=[[0], [1]]), r'layer "conv1" does not hold 8 channels'),
    'index row short': (member(index=[[]] * 8, block=1), r'layer "conv1"'),
    'position twice': (member(index=[[0]] * 8, block=1), r'layer "conv1"'),
    'position outside': (member(index=[[i] for i in range(1, 9)], block=1), r'layer "conv1"'),
}


@pytest.mark.parametrize('case', MALFORMED)
def test_malformed_unit_is_named(write, case):
    change, text = MALFORMED[case]
    path = write(change)
    with pytest.raises(UnitFileError, match=text) as caught:
        UnitSet.load(path)
    assert str(path) in str(caught.value)
    assert 'unit "conv1"' in str(caught.value)
    assert str(caught.value).count(str(path)) == 1


def test_choice_of_unprunable_unit(write):
    path = write(lambda c: c['units']['head'].update(keep=2, indices=[0, 1]))
    with pytest.raises(UnitFileError, match=r'units\.json: unit "head" \(5 channels\) cannot be '
                                            f'pruned: {Reason.OUTPUT.value}'):
        UnitSet.load(path)


@pytest.mark.parametrize('text, message', [
    ('', 'not valid JSON'),
    ('{"schema": 1, "units": {', r'not valid JSON \(line 1: .*write it anew'),
    ('[]', 'expected a JSON object'),
    ('{}', 'expected a JSON object'),
    ('{"conv1": 0.5}', r'not a channel-unit file of schema 1 \(got schema None\)'),
    ('{"schema": 2, "units": {}}', r'schema 1 \(got schema 2\)'),
    ('{"schema": 1, "units": []}', 'schema 1'),
])
def test_not_a_unit_file(tmp_path, text, message):
    path = tmp_path / 'units.json'
    path.write_text(text)
    with pytest.raises(UnitFileError, match=message) as caught:
        UnitSet.load(path)
    assert str(path) in str(caught.value)


def test_unreadable(tmp_path):
    with pytest.raises(UnitFileError, match=r'none\.json: no such file'):
        UnitSet.load(tmp_path / 'none.json')
    with pytest.raises(UnitFileError, match='cannot be read'):
        UnitSet.load(tmp_path)
    (tmp_path / 'weights.pth').write_bytes(bytes(range(256)))
    with pytest.raises(UnitFileError, match=r'weights\.pth: cannot be read'):
        UnitSet.load(tmp_path / 'weights.pth')


# ---------------------------------------------------------------- atomic writing


def test_failed_write_leaves_the_old_file(tmp_path, units, monkeypatch):
    import os
    path = tmp_path / 'units.json'
    path.write_text('old')

    def fail(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(PruningError, match=r'units\.json.*No space left on device'):
        units.save(path)
    assert path.read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['units.json']


def test_folder_that_cannot_be_made(tmp_path, units):
    (tmp_path / 'file').write_text('')
    with pytest.raises(PruningError, match='cannot write'):
        units.save(tmp_path / 'file' / 'units.json')


# ---------------------------------------------------------------- against a model


@pytest.mark.parametrize('name, message', [
    ('Residual', r'unit "conv1": the model has no layer "conv1"'),
    ('FlattenLinear', r'unit "conv1" covers channels 0\.\.8 of layer "conv1", which has 4'),
])
def test_units_of_another_model(write, name, message):
    path = write()
    with pytest.raises(UnitFileError, match=rf'units\.json: {message}'):
        UnitSet.load(path).check(TOYS[name].build(), str(path))


class WiderChain(toy_layers.Chain):
    """The chain with more channels in the second layer."""

    def __init__(self):
        super().__init__()
        self.conv2, self.bn2 = torch.nn.Conv2d(8, 16, 3), torch.nn.BatchNorm2d(16)


class LongerChain(toy_layers.Chain):
    """The chain with one more layer."""

    def __init__(self):
        super().__init__()
        self.conv3 = torch.nn.Conv2d(12, 12, 3)


class OtherKinds(toy_layers.Chain):
    """The chain with a linear layer in place of a normalisation."""

    def __init__(self):
        super().__init__()
        self.bn1 = torch.nn.Linear(8, 8)


def test_width_of_another_model(units):
    with pytest.raises(UnitFileError, match=r'12 output channels of layer "conv2", which has 16'):
        units.check(WiderChain(), 'a.json')


def test_kind_of_another_model(units):
    with pytest.raises(UnitFileError, match=r'unit "conv1": layer "bn1" \(Linear\) cannot be a '
                                            r'follower'):
        units.check(OtherKinds(), 'a.json')


def test_layer_that_the_file_does_not_know(units):
    """Only a model that has the pruned part in a submodule can be told apart from another head."""
    whole = {name: torch.nn.ModuleDict({'backbone': net}) for name, net in
             (('known', toy_layers.Chain()), ('longer', LongerChain()))}
    content = units.to_json()
    text = json.dumps(content['units'])
    for layer in ('conv1', 'conv2', 'bn1', 'bn2', 'head'):
        text = text.replace(f'"{layer}"', f'"backbone.{layer}"')
    content['units'] = json.loads(text)
    loaded = UnitSet.from_dict(content, 'a.json')
    loaded.check(whole['known'], 'a.json')
    with pytest.raises(UnitFileError, match='does not describe layer "backbone.conv3"'):
        loaded.check(whole['longer'], 'a.json')


def test_model_already_compact(chain, units):
    units['conv1'].choose([0, 1, 2])
    compact = slim(copy.deepcopy(chain), units)
    with pytest.raises(UnitFileError, match='is this model already compact'):
        slim(compact, units)


def test_wrong_model_is_left_unchanged(units):
    model = TOYS['FlattenLinear'].build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UnitFileError):
        slim(model, units)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# ---------------------------------------------------------------- mmrazor's form


def razor(**changes):
    """Return the content of a file as mmrazor writes it, for the chain."""
    record = {'init_args': {'num_channels': 8, 'choice_mode': 'ratio', 'divisor': 2},
              'channels': {'input_related': [{'name': 'bn1', 'start': 0, 'end': 8},
                                             {'name': 'conv2', 'start': 0, 'end': 8}],
                           'output_related': [{'name': 'conv1', 'start': 0, 'end': 8,
                                               'expand_ratio': 1, 'is_output_channel': True}]},
              'choice': 0.5}
    record.update(changes)
    return {'conv1_(0, 8)_8': record}


def load_razor(tmp_path, content):
    path = tmp_path / 'razor.json'
    path.write_text(json.dumps(content))
    return UnitSet.load(path)


@pytest.mark.parametrize('choice, keep', [(0.5, 4), (3, 3), (8, 8), (1.0, 8), (1, 1), (0.99, 7)])
def test_mmrazor_choice(tmp_path, choice, keep):
    """An integer is a number of channels, a float a share; both are what stays."""
    units = load_razor(tmp_path, razor(choice=choice))
    assert list(units) == ['conv1']
    assert units['conv1'].num_channels == 8
    assert units['conv1'].keep == keep
    assert units['conv1'].init_args == InitArgs(2, 1)


def test_mmrazor_long_name(tmp_path):
    content = {'backbone.layer1.0.conv1_(0, 64)_64': {'choice': 0.25}}
    unit = load_razor(tmp_path, content)['backbone.layer1.0.conv1']
    assert (unit.num_channels, unit.keep, unit.members) == (64, 16, [])


def test_mmrazor_two_units_of_one_layer(tmp_path):
    content = {'conv1_(0, 4)_4': {'choice': 2}, 'conv1_(4, 8)_4': {'choice': 3}}
    units = load_razor(tmp_path, content)
    assert [(u.name, u.keep) for u in units.values()] == [('conv1', 2), ('conv1#2', 3)]


@pytest.mark.parametrize('change, message', [
    ({'choice': 9}, 'choice 9 is out of range'),
    ({'choice': 0}, 'choice 0 is out of range'),
    ({'choice': 0.01}, 'choice 0.01 is out of range'),
    ({'choice': 1.5}, 'choice 1.5 is out of range'),
    ({'choice': -0.5}, 'choice -0.5 is out of range'),
    ({'choice': 'half'}, "choice should be a number, got 'half'"),
    ({'choice': True}, 'choice should be a number, got True'),
    ({'init_args': {'num_channels': 16}}, 'num_channels is 16, its name says 8'),
    ({'init_args': [8]}, 'malformed'),
    ({'init_args': {'divisor': 'x'}}, 'malformed'),
    ({'init_args': {'divisor': 0}}, 'divisor should be'),
    ({'channels': None}, 'malformed'),
    ({'channels': {'output_related': [{'name': 'conv1'}]}}, 'malformed'),
    ({'channels': {'output_related': [{'name': 'conv1', 'start': 0, 'end': 7}]}},
     r'range 0\.\.7 of layer "conv1"'),
])
def test_mmrazor_malformed(tmp_path, change, message):
    with pytest.raises(UnitFileError, match=message) as caught:
        load_razor(tmp_path, razor(**change))
    assert 'razor.json: unit "conv1_(0, 8)_8"' in str(caught.value)


def test_mmrazor_file_slims(tmp_path, chain, units):
    """Batch normalisation stands among mmrazor's input-related layers and is a follower."""
    content = razor(choice=4)
    for name, count in (('conv2', 12), ('head', 5)):
        content[f'{name}_(0, {count})_{count}'] = {
            'choice': 1.0, 'channels': {'output_related': [{'name': name, 'start': 0,
                                                            'end': count}]}}
    loaded = load_razor(tmp_path, content)
    units['conv1'].choose(range(4))
    x = toy_layers.Chain.example()
    assert torch.equal(slim(copy.deepcopy(chain), loaded)(x), slim(copy.deepcopy(chain), units)(x))
