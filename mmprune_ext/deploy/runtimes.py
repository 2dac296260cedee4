"""Running what was exported, in its runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mmprune_ext.deploy.exporting import BACKENDS, quiet

Runtime = Callable[[np.ndarray], list[np.ndarray]]


def open_runtime(backend: str, folder: Path) -> Runtime:
    """Return a function that runs the model of a folder on images ``(N, C, H, W)``, in as many threads as torch has."""
    return _OPENERS[backend](folder / BACKENDS[backend][0], torch.get_num_threads())


def _onnxruntime(path: Path, threads: int) -> Runtime:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def _openvino(path: Path, threads: int) -> Runtime:
    import openvino
    core = openvino.Core()
    # By default it computes in bfloat16 where the processor can.
    model = core.compile_model(str(path), 'CPU', {'INFERENCE_NUM_THREADS': threads,
                                                  'INFERENCE_PRECISION_HINT': 'f32'})

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = model(images)
        return [np.array(found[output]) for output in model.outputs]
    return run


def _torch_export(path: Path, threads: int) -> Runtime:
    with quiet():
        module = torch.export.load(path).module()

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [value.numpy() for value in module(torch.from_numpy(images))]
    return run


_OPENERS: dict[str, Callable[[Path, int], Runtime]] = {
    'onnxruntime': _onnxruntime, 'openvino': _openvino, 'torch-export': _torch_export}
