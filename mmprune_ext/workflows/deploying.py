"""Deploy the model of a config: write it for a runtime, and check what was written."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmprune_ext.atomic import atomic_files
from mmprune_ext.compact.checkpoint import load_weights, read_checkpoint
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.deploy import decoding
from mmprune_ext.deploy.checking import check_shapes, compare_outputs, compare_times, file_sizes, shapes_to_check
from mmprune_ext.deploy.description import describe
from mmprune_ext.deploy.exporting import BACKENDS, export_program, quiet, write_onnx, write_openvino, write_program
from mmprune_ext.deploy.passes import InferencePass, Plan, plan_of
from mmprune_ext.deploy.runtimes import open_runtime
from mmprune_ext.errors import CheckpointError, ConfigError, PruningError
from mmprune_ext.model_config import is_compact, is_pruning
from mmprune_ext.paths import DEPLOYED
from mmprune_ext.settings.reading import require_sections
from mmprune_ext.units.demo_inputs import counting_inputs, failure_of, image_shape, set_training
from mmprune_ext.workflows.deployed_metric import DeployedMetric
from mmprune_ext.workflows.pruning import compact_of_run

DESCRIPTION, DECODING = 'deploy.json', 'decoding.py'


@dataclass(frozen=True)
class Form:
    """What a deployed model takes.

    Attributes:
        backend: A key of :data:`mmprune_ext.deploy.exporting.BACKENDS`.
        size: ``(H, W)`` of the images; the config's own by default.
        batch_size: Images of a pass.
        dynamic: What may differ from these: ``batch``, ``size``.
    """

    backend: str
    size: Sequence[int] | None = None
    batch_size: int = 1
    dynamic: Sequence[str] = ()


def deploy(config: Config, checkpoint: str | None, folder: str | Path, form: Form,
           samples: int | None = None) -> dict[str, Any]:
    """Write the model of a config for a runtime, with its description and its decoding.

    Everything is written and checked beside the folder, and moved there at the end.

    Args:
        config: Of a dense model, a compact one, or a pruning run.
        checkpoint: Its weights; a compact config names its own.
        folder: Where to write.
        form: For which runtime, and on which inputs.
        samples: Measure the metric of the test set through the runtime too, on so many samples (0: all).

    Returns:
        The content of ``deploy.json``, with the check.

    Raises:
        PruningError: If the model cannot be built or exported, or the exported one is not the same.
    """
    if samples is not None:
        require_sections(config, ['test_dataloader', 'test_evaluator'], 'to measure the metric (--metric)')
    model, meta = model_of(config, checkpoint)
    shape = (form.batch_size, *_image_shape(config, model, form))
    # A batch of one would be taken for a fixed number.
    images = torch.randn(max(shape[0], 2) if 'batch' in form.dynamic else shape[0], *shape[1:])
    plan = _plan(model, images)
    module = InferencePass(model, plan, images).eval()
    metric = None if samples is None else DeployedMetric(config, samples, model, plan)
    description = describe(plan, model, config, meta, shape, form.dynamic)
    description.update(backend=form.backend, file=BACKENDS[form.backend][0])
    shapes = shapes_to_check(shape, form.dynamic, description['input']['pad_divisor'])
    check_shapes(module, shapes)
    program = export_program(module, images, form.dynamic)
    try:
        with atomic_files(folder, DESCRIPTION, DEPLOYED) as temporary:
            files = _write(program, plan, form.backend, temporary)
            runtime = open_runtime(form.backend, temporary)
            check: dict[str, Any] = {
                'outputs': compare_outputs(module, runtime, shapes, list(plan.outputs)),
                'size': file_sizes(files, module), 'latency': compare_times(module, runtime, shape)}
            if metric is not None:
                check['metric'] = metric.compare(runtime, description)
            description['check'] = check
            (temporary / DECODING).write_text(Path(decoding.__file__).read_text())
            (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1) + '\n')
    except OSError as error:
        raise PruningError(f'cannot write {folder}: {error.strerror or error}') from error
    return description


def model_of(config: Config, checkpoint: str | None) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return the model of a config with its weights, on the CPU and in eval mode, and the meta of its checkpoint.

    Args:
        config: Of a dense model, a compact one, or a pruning run, of which it is the compact model.
        checkpoint: The weights; a compact config names its own.

    Raises:
        CheckpointError: If there are none, or they do not fit.
    """
    config = copy.deepcopy(config)
    settings = config.model
    if checkpoint is None:
        checkpoint = (settings.get('init_cfg') or {}).get('checkpoint') if is_compact(settings) else None
    if checkpoint is None:
        raise CheckpointError('no weights to deploy: give a checkpoint (only a compact config names its own)')
    stored = read_checkpoint(checkpoint)
    if is_pruning(settings):
        model, _ = compact_of_run(config, checkpoint, stored)
    elif is_compact(settings):
        settings.init_cfg = dict(type='Pretrained', checkpoint=checkpoint, strict=True)
        model = MODELS.build({**settings, 'data_preprocessor': settings.get('data_preprocessor')
                              or config.get('data_preprocessor')})
    else:
        model = build_architecture(settings, config.get('data_preprocessor'))
        load_weights(model, checkpoint)
    model = revert_sync_batchnorm(model).cpu()
    set_training(model, False)
    return model, stored['meta']


def _image_shape(config: Config, model: nn.Module, form: Form) -> tuple[int, int, int]:
    """Return the ``(C, H, W)`` of the images that a model is exported on."""
    inputs = counting_inputs(config, form.size)
    if isinstance(inputs, Mapping) or callable(inputs):
        raise ConfigError('demo_inputs: the config runs its model by a function of its own, on more than images; '
                          'deploy.py exports models that take a batch of images')
    if inputs is None and not _states_size(model):
        raise ConfigError('the config does not tell the size of its images; give it: --shape H W')
    return image_shape(model, inputs)


def _states_size(model: nn.Module) -> bool:
    codec = getattr(getattr(model, 'head', None), 'decoder', None)
    return bool(getattr(getattr(model, 'backbone', None), 'img_size', None) or getattr(codec, 'input_size', None))


def _plan(model: nn.Module, images: Tensor) -> Plan:
    try:
        with quiet():
            return plan_of(model, images)
    except PruningError:
        raise
    except Exception as error:  # runs the model, of which anything may not fit the size
        raise ConfigError(f'the model does not run on images of {tuple(images.shape)}: '
                          f'{failure_of(model, error)}; give another --shape') from error


def _write(program: torch.export.ExportedProgram, plan: Plan, backend: str, folder: Path) -> list[Path]:
    """Write a model for its backend; return its files."""
    path = folder / BACKENDS[backend][0]
    if backend == 'torch-export':
        write_program(program, path)
        return [path]
    if backend == 'onnxruntime':
        write_onnx(program, list(plan.outputs), path)
        return [path]
    between = path.with_suffix('.onnx')
    write_onnx(program, list(plan.outputs), between)
    write_openvino(between, path)
    between.unlink()
    return [path, path.with_suffix('.bin')]


def summary(description: Mapping[str, Any]) -> str:
    """Return what was written and how it compares with PyTorch, as text."""
    check, backend = description['check'], description['backend']
    shape = 'x'.join(map(str, description['input']['shape']))
    worst = max(check['outputs'], key=lambda found: found['difference'])
    tested = ', '.join('x'.join(map(str, found['shape'])) for found in check['outputs'])
    size, speed = check['size'], check['latency']
    lines = [f'{description["model"]} for {backend}, images {shape}, {len(description["outputs"])} outputs',
             f'outputs: largest difference from PyTorch {worst["difference"]:.1e} of the largest value, on {tested}',
             f'size: {size["file_bytes"] / 1e6:.2f} MB, of which weights {size["weight_bytes"] / 1e6:.2f} MB',
             f'time of {"x".join(map(str, speed["shape"]))} in {speed["threads"]} threads, measured in turn: '
             f'PyTorch {speed["torch_ms"]:.2f} ms, {backend} {speed["runtime_ms"]:.2f} ms ({speed["speedup"]:.2f} '
             'times as fast)']
    if description['decoding']['type'] == 'raw':
        lines.append(f'outputs are raw: {description["decoding"]["reason"]}')
    lines += [f'{name} on {check["metric"]["samples"]} samples: PyTorch {pair["torch"]:.4f}, {backend} '
              f'{pair["runtime"]:.4f}' for name, pair in check.get('metric', {}).get('metrics', {}).items()]
    return '\n'.join(lines) + '\n'
