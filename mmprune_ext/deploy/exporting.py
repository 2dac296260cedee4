"""Writing a model for a runtime: torch.export, ONNX from it, and OpenVINO from that."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmprune_ext.deploy.description import INPUT
from mmprune_ext.deploy.passes import InferencePass
from mmprune_ext.errors import ConfigError, PruningError

if TYPE_CHECKING:
    from onnx import ModelProto

# Backend -> the file that it reads, and the modules that it needs with the distributions of these.
BACKENDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    'onnxruntime': ('model.onnx', {'onnx': 'onnx', 'onnxscript': 'onnxscript', 'onnxruntime': 'onnxruntime'}),
    'openvino': ('model.xml', {'onnx': 'onnx', 'onnxscript': 'onnxscript', 'openvino': 'openvino'}),
    'torch-export': ('model.pt2', {}),
}
AXES = {'batch': (0, ), 'size': (2, 3)}


def require_backend(backend: str) -> None:
    """Check that what a backend needs is installed.

    Raises:
        ConfigError: Naming what to install.
    """
    lacking = [distribution for module, distribution in BACKENDS[backend][1].items()
               if importlib.util.find_spec(module) is None]
    if lacking:
        raise ConfigError(f'--backend {backend}: {", ".join(lacking)} not installed; install what it needs: pip '
                          f'install {" ".join(lacking)} (versions that are tested: requirements/export.txt)')


def export_program(module: InferencePass, images: Tensor, dynamic: Sequence[str] = ()) -> torch.export.ExportedProgram:
    """Return a model's pass as a graph.

    Args:
        module: The pass, in eval mode on the CPU.
        images: An example of its input; where the batch is dynamic two or more images.
        dynamic: What may differ from the example: ``batch``, ``size``.

    Raises:
        PruningError: If the pass cannot be followed, or has a fixed size that should be dynamic.
    """
    axes = {axis: torch.export.Dim.DYNAMIC for name in dynamic for axis in AXES[name]}
    name = type(module.model).__name__
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(module, (images, ), dynamic_shapes=({**axes}, ), strict=False)
    except Exception as error:  # runs the user's model under torch's tracer, which may fail in any way
        hint = (f'; is its {" or ".join(dynamic)} fixed? Export it without --dynamic {" ".join(dynamic)}'
                if dynamic else '')
        raise PruningError(f'{name}: torch.export cannot follow its pass: {_first_line(error)}{hint}') from error
    # Else the example is written into the file.
    program.example_inputs = None
    return program


def write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a graph as torch.export stores it, without its notes on the sources."""
    for node in program.graph.nodes:
        for note in ('stack_trace', 'nn_module_stack', 'source_fn_stack', 'torch_fn', 'from_node'):
            node.meta.pop(note, None)
    with quiet():
        torch.export.save(program, path)


def write_onnx(program: torch.export.ExportedProgram, outputs: Sequence[str], path: Path) -> None:
    """Write a graph as an ONNX file, weights inside.

    Raises:
        PruningError: If ONNX has no operator for one of its operators.
    """
    try:
        with torch.no_grad(), quiet():
            found = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT],
                                      output_names=list(outputs))
    except Exception as error:  # as torch.onnx reports an operator that it does not know, among others
        operator = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", f'{error} {error.__cause__}')
        raise PruningError('ONNX: ' + (f'there is no translation of the operator {operator[1]}' if operator
                                       else _first_line(error.__cause__ or error))
                           + '; --backend torch-export does without') from error
    proto = found.model_proto
    _strip(proto)
    path.write_bytes(proto.SerializeToString())


def write_openvino(onnx_file: Path, path: Path) -> None:
    """Write an ONNX file as OpenVINO's model: ``path``, and its weights beside it in float32.

    Raises:
        PruningError: If OpenVINO cannot read the file.
    """
    import openvino
    try:
        with quiet():
            # Not by openvino.convert_model, which reports its use over the network.
            openvino.save_model(openvino.Core().read_model(str(onnx_file)), str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise PruningError(f'OpenVINO cannot read the ONNX file: {_first_line(error)}') from error


def _strip(proto: ModelProto) -> None:
    """Drop what the exporter notes about the sources, a tenth of a small model, and name the dynamic axes."""
    graph = proto.graph
    del proto.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, *proto.functions):
        item.doc_string = ''
        del item.metadata_props[:]
    sizes = graph.input[0].type.tensor_type.shape.dim
    names = {size.dim_param: name for size, name in zip(sizes, ('batch', '', 'height', 'width')) if size.dim_param}
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r'\w+', lambda found: names.get(found[0], found[0]), size.dim_param)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {(lines or [""])[0][:240]}'


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporters say about their own insides from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


