"""The converter of public CIFAR ResNet checkpoints, on checkpoints that the test makes."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmprune_ext.errors import CheckpointError
from mmprune_ext.models import CifarResNet
from mmprune_ext.models.convert import convert_checkpoint, convert_state_dict, read_state_dict

ROOT = Path(__file__).resolve().parents[2]


def public_state(depth: int = 20, classes: int = 10) -> dict[str, torch.Tensor]:
    """Random weights in the public naming, with the prefix of DataParallel."""
    torch.manual_seed(0)
    state = {name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor
             for name, tensor in CifarResNet(depth).state_dict().items()}
    state |= {'linear.weight': torch.randn(classes, 64), 'linear.bias': torch.randn(classes)}
    return {f'module.{name}': tensor for name, tensor in state.items()}


@pytest.fixture
def public_file(tmp_path):
    path = tmp_path / 'public.th'
    torch.save(dict(state_dict=public_state(), best_prec1=91.7), path)
    return path


@pytest.mark.parametrize('model', [None, 'resnet20'])
def test_round_trip(public_file, tmp_path, model):
    target = tmp_path / 'new' / 'ours.pth'
    assert convert_checkpoint(public_file, target, model) == 'resnet20'
    ours = torch.load(target, weights_only=True)['state_dict']
    public = public_state()
    assert len(ours) == len(public)
    for name, tensor in public.items():
        name = name.removeprefix('module.')
        new = name.replace('linear.', 'head.fc.') if 'linear' in name else f'backbone.{name}'
        assert torch.equal(ours[new], tensor)
    CifarResNet(20).load_state_dict({name.removeprefix('backbone.'): tensor
                                     for name, tensor in ours.items() if 'backbone' in name})
    assert [path.name for path in target.parent.iterdir()] == ['ours.pth']


def test_old_file_without_counters_and_with_other_classes(tmp_path):
    state = {name: tensor for name, tensor in public_state(classes=100).items()
             if 'num_batches' not in name}
    torch.save(state, tmp_path / 'old.th')  # the state dict alone
    ours = convert_state_dict(read_state_dict(tmp_path / 'old.th'))
    assert ours['head.fc.weight'].shape == (100, 64)
    assert ours['backbone.layer3.2.bn2.num_batches_tracked'] == 0


@pytest.mark.parametrize(('change', 'model', 'message'), [
    (lambda s: s.pop('conv1.weight'), None, r'1 missing: conv1\.weight'),
    (lambda s: s.pop('linear.bias'), None, r'1 missing: linear\.bias'),
    (lambda s: s.update(extra=torch.ones(1)), None, '1 unexpected: extra'),
    (lambda s: s.update({'bn1.bias': torch.ones(17)}), None,
     r'1 wrong shape: bn1\.bias \(17,\) instead of \(16,\)'),
    # 18 blocks more, each with 2 convolutions and 2 BNs of 4 tensors (counters may be missing).
    (lambda s: None, 'resnet56', r'of resnet56: 180 missing: .* and 175 more'),
    (lambda s: None, 'resnet50', "unknown model 'resnet50': must be one of resnet20"),
    (lambda s: [s.pop(k) for k in list(s) if 'layer1.2' in k], None, 'stage 1 of 2 blocks'),
])
def test_what_does_not_fit_is_named(change, model, message):
    state = {name.removeprefix('module.'): tensor for name, tensor in public_state().items()}
    change(state)
    with pytest.raises(CheckpointError, match=message):
        convert_state_dict(state, model)


class Harmful:
    """Unpickling it would run code."""

    def __reduce__(self):
        return print, ('ran', )


@pytest.mark.parametrize(('make', 'message'), [
    (lambda path, good: None, 'no such checkpoint file'),
    (lambda path, good: path.write_bytes(b''), 'not a readable PyTorch checkpoint'),
    (lambda path, good: path.write_text('no checkpoint'), 'not a readable PyTorch checkpoint'),
    (lambda path, good: path.write_bytes(good[:len(good) // 2]), 'not a readable PyTorch'),
    (lambda path, good: torch.save([1, 2], path), 'holds no state dict'),
    (lambda path, good: torch.save(dict(state_dict={'a': 1}), path), 'holds no state dict'),
    (lambda path, good: torch.save(Harmful(), path), 'holds more than weights, print, which may run code'),
])
@pytest.mark.parametrize('zipped', [True, False])
def test_bad_files(public_file, tmp_path, capsys, make, message, zipped):
    torch.save(torch.load(public_file), public_file, _use_new_zipfile_serialization=zipped)
    bad, target = tmp_path / 'bad.th', tmp_path / 'ours.pth'
    make(bad, public_file.read_bytes())
    with pytest.raises(CheckpointError, match=message) as caught:
        convert_checkpoint(bad, target)
    assert str(bad) in str(caught.value)
    assert '\n' not in str(caught.value)
    assert 'ran' not in capsys.readouterr().out
    assert not target.exists()


def test_target_that_cannot_be_written(public_file, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match=r'ours\.pth: cannot be written'):
        convert_checkpoint(public_file, tmp_path / 'file' / 'ours.pth')


def test_tool_prints_one_line_and_exits_with_2(tmp_path):
    command = [sys.executable, str(ROOT / 'tools' / 'convert_checkpoint.py'),
               str(tmp_path / 'none.th'), str(tmp_path / 'ours.pth')]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith('none.th: no such file\n')
    assert 'Traceback' not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_misfit_names_the_file(public_file, tmp_path):
    with pytest.raises(CheckpointError, match=r'public\.th: not the weights of resnet56'):
        convert_checkpoint(public_file, tmp_path / 'ours.pth', 'resnet56')
