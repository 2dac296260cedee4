"""The script for a GPU: how it judges, its images, what it keeps, and all of it once on a CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from benchmarks.accuracy_runs import NETWORKS
from benchmarks.gpu.bench import QUICK, Bench
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.compare import computing_on, judged, other_choices, relative
from benchmarks.gpu.finetune import finetune
from benchmarks.gpu.images import BatchLabels, DeviceImages, cropped_and_flipped, read_images
from benchmarks.gpu.results import DONE, ERROR, FAIL, LATE, PASS, Results
from mmprune_ext.errors import ConfigError
from tests.in_process import own_globals
from tests.test_docs.commands import ROOT

# What hides all that a bare machine lacks: libraries of other tasks, and mmcv's compiled operators.
HIDING = """\
import sys
from importlib.machinery import PathFinder


class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split('.')[0] in ('mmdet', 'mmseg', 'mmpose') or name == 'mmcv._ext'
        return None if hidden else super().find_spec(name, path, target)


sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


def test_an_error_is_allowed_that_the_cpu_makes_too():
    def status(name, own, error):
        """Judge values of length 5 of which the last is off, on the CPU and on the device."""
        exact, plain, found = ({name: torch.tensor([3.0, 4 + 5 * off]).double()} for off in (0, own, error))
        return judged(exact, plain, found)['status']
    assert (status('x', 1e-4, 9e-4), status('x', 1e-4, 11e-4)) == (PASS, FAIL)  # ten times
    assert (status('x', 0, 0.9e-4), status('x', 0, 1.1e-4)) == (PASS, FAIL)  # in any case
    assert (status('gradients of x', 0, 0.9e-2), status('gradients of x', 0, 1.1e-2)) == (PASS, FAIL)


@pytest.mark.parametrize('found', [torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf]), torch.ones(3)])
def test_what_is_no_number_or_of_another_shape_is_off(found):
    assert relative(found, torch.tensor([1.0, 2.0])) == math.inf


def test_channels_chosen_otherwise():
    wanted = {'a': torch.tensor([4.0, 3.0, 2.0, 1.0]), 'b': torch.tensor([1.0, 2.0])}
    assert other_choices(wanted, wanted) == (0, 6, 0.0)
    swapped = {**wanted, 'a': torch.tensor([4.0, 2.0, 3.0, 1.0])}
    # Channels 1 and 2 have changed places; both are 0.5 from the border at 2.5, an eighth of the largest score.
    assert other_choices(swapped, wanted) == (1, 6, 0.125)


def test_images_are_cut_out_of_padded_ones():
    images = torch.randint(1, 256, (64, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = cropped_and_flipped(images, 2)
    assert found.shape == images.shape and found.dtype == torch.uint8
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    places = []
    for image, cut in zip(padded, found.numpy()):
        views = {(y, x, flip): (image[:, y:y + 6, x:x + 5][..., ::-1] if flip else image[:, y:y + 6, x:x + 5])
                 for y in range(5) for x in range(5) for flip in (False, True)}
        place, = [key for key, view in views.items() if np.array_equal(view, cut)]
        places.append(place)
    rows, columns, flips = zip(*places)
    assert set(rows) == set(columns) == set(range(5)) and 16 < sum(flips) < 48


def test_images_are_those_of_the_folders(digits):
    images, labels, classes = read_images(str(digits), 'val')
    assert classes == [str(digit) for digit in range(10)] and len(images) == len(labels)
    whole = DeviceImages(str(digits), 'val', 'cpu')
    batch = whole.__getitems__([3, 0])
    assert batch['inputs'].shape == (2, 3, *images.shape[1:3])
    np.testing.assert_array_equal(batch['inputs'][0].numpy(), images[3].transpose(2, 0, 1)[::-1])
    assert [int(sample.gt_label) for sample in batch['data_samples']] == [labels[3], labels[0]]
    labels_alone, = DeviceImages(str(digits), 'val', 'cpu', samples=False).__getitems__([3, 0])['data_samples']
    assert isinstance(labels_alone, BatchLabels) and labels_alone.gt_label.tolist() == [labels[3], labels[0]]
    assert 'gt_label' in labels_alone and 'gt_score' not in labels_alone


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(ConfigError, match='no images: neither labels.npz .* name such a folder with --data'):
        read_images(str(tmp_path), 'train')


def test_the_device_is_mmengines_for_a_block():
    from mmengine.device import get_device
    before = get_device()
    with computing_on('meta'):
        assert get_device() == 'meta'
    assert get_device() == before


def test_results_are_kept(tmp_path):
    first = Results(tmp_path, {'device': 'cpu'}, 'a machine')
    first.put('checks', 'one', {'status': PASS, 'numbers': {'x': math.inf}})
    first.put('checks', 'two', {'status': ERROR, 'text': 'a | b\nc'})
    first.put('speed', 'three', {'status': DONE})
    again = Results(tmp_path, {'device': 'cpu'}, 'a machine')
    assert [again.is_done(*name) for name in (('checks', 'one'), ('checks', 'two'), ('speed', 'three'),
                                              ('speed', 'one'))] == [True, False, True, False]
    assert again.failed() == ['two']
    assert json.loads((tmp_path / 'results.json').read_text())['checks']['one']['numbers'] == {'x': 'inf'}
    summary = (tmp_path / 'summary.md').read_text()
    assert 'a machine' in summary and '| two | ERROR | a / b c |' in summary
    with pytest.raises(ConfigError, match='results of another setting, .* give another folder with --out'):
        Results(tmp_path, {'device': 'cuda'}, 'a machine')


def write_weights(folder, classifier):
    """Write random weights of the small network."""
    model = Config.fromfile(ROOT / NETWORKS['resnet20'].config).model
    torch.save({'state_dict': classifier(model.backbone, model.head.in_channels).state_dict()},
               folder / 'resnet20_cifar10.pth')


def script(folder, data, *arguments, python=sys.executable):
    return subprocess.run(
        ['bash', str(ROOT / 'benchmarks' / 'gpu.sh'), '--data', str(data), '--weights', str(folder), '--out',
         str(folder / 'out'), *arguments], capture_output=True, text=True, env={**os.environ, 'PYTHON': str(python)})


# One of each kind of check: all of them take a minute.
SOME = ('scores of CHIP', 'DCFF step', 'ChipNet step', 'stripe-wise', 'stripe convolutions', 'distillation', 'repair',
        'precision, DCFF', 'inference, batch 1')


@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_on_a_cpu_without_other_libraries(digits, classifier, tmp_path):
    """All parts, where neither mmcv's operators nor other task libraries can be imported."""
    write_weights(tmp_path, classifier)
    (tmp_path / 'sitecustomize.py').write_text(HIDING)
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}:$PYTHONPATH exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    arguments = ('--device', 'cpu', '--quick', '--seconds', '1700', '--only', *SOME)
    done = script(tmp_path, digits, *arguments, python=python)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((tmp_path / 'out' / 'results.json').read_text())
    wanted = [name for name in CHECKS if any(text in name for text in SOME)]
    assert list(found['checks']) == wanted and len(wanted) == 8
    assert {result['status'] for result in found['checks'].values()} == {PASS}
    assert list(found['speed']) == ['inference, batch 1']
    assert found['finetune']['resnet20']['numbers']['epochs done'] == 1
    assert 'without compiled operators' in done.stdout and 'all as it should be' in done.stdout
    again = script(tmp_path, digits, *arguments, python=python)
    assert again.returncode == 0 and 'PASS' not in again.stdout


@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_a_training_out_of_time_is_gone_on_with(digits, classifier, tmp_path, mmpretrain_scope):
    write_weights(tmp_path, classifier)
    bench = Bench(str(digits), str(tmp_path), 'cpu', QUICK)

    def trained(name, *seconds):
        """Return the result of the last of some runs in a folder, and the weights it ends with."""
        for limit in seconds:
            with own_globals(), DefaultScope.overwrite_default_scope('mmpretrain'):
                found = finetune(bench, 'resnet20', tmp_path / name, limit, epochs=2, limit=32)
        path = tmp_path / name / f'epoch_{found["numbers"]["epochs done"]}.pth'
        return found, torch.load(path, weights_only=False)['state_dict']
    late, _ = trained('parts', 0)
    assert (late['status'], late['numbers']['epochs done']) == (LATE, 1)
    parts, weights = trained('parts', 1000)
    whole, wanted = trained('whole', 1000)
    assert parts['status'] == whole['status'] == DONE and parts['numbers']['epochs done'] == 2
    torch.testing.assert_close(weights, wanted, rtol=0, atol=0)
    assert parts['numbers']['test accuracy'] == whole['numbers']['test accuracy']


@pytest.mark.e2e
@pytest.mark.parametrize(('arguments', 'message'), [
    ((), 'resnet20_cifar10.pth: no such file; tools/convert_checkpoint.py writes it'),
    (('--wheels', 'nowhere'), '--wheels nowhere: no wheels there'),
    (('--device', 'tpu'), '--device tpu: not a device that this measures on')])
def test_bad_arguments(digits, tmp_path, arguments, message):
    done = script(tmp_path, digits, *(arguments if '--device' in arguments else ('--device', 'cpu', *arguments)),
                  '--quick')
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'out').exists()
