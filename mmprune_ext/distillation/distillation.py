"""What a distillation is made of: teachers, the outputs and maps that are compared, their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.analysis.preserve import untouched
from mmprune_ext.distillation import losses, outputs
from mmprune_ext.distillation.capture import check_path, recorded
from mmprune_ext.distillation.outputs import Output
from mmprune_ext.distillation.teachers import Teacher, build_teachers
from mmprune_ext.draws import preserved_random_state
from mmprune_ext.errors import ConfigError
from mmprune_ext.units.demo_inputs import DemoInputs, OnImages, eval_pass, failure_of
from mmprune_ext.units.task_samples import data_samples


class Distillation:
    """Teachers of a student, and how the two are compared.

    It is no module: teachers are in no ``parameters()``, ``state_dict()``, ``train()`` or ``to()`` of the student, and
    copies of the student (a moving average) share them, for nothing in them ever changes.

    Args:
        student: The model that is taught; it stays as it is.
        teachers: Settings of the members (:func:`mmprune_ext.distillation.teachers.build_teachers`). Without a weight
            above 0 they are not read.
        temperature: Of logits; the default of the kind of output otherwise.
        loss_weight: Of what the outputs lose, at least 0.
        maps_weight: Of what each map loses, at least 0.
        paths: Heads whose outputs are compared; the task's own by default.
        maps: Parts whose maps are compared.
        demo_inputs: What both are run on once, before anything is trained.

    Raises:
        PruningError: If settings are wrong, or a teacher does not fit.
    """

    def __init__(self, student: nn.Module, teachers: Any, temperature: float | None, loss_weight: float,
                 maps_weight: float, paths: Sequence[str] | None, maps: Sequence[str],
                 demo_inputs: DemoInputs = None) -> None:
        if temperature is not None:
            _check_number('temperature', temperature, positive=True)
        _check_number('loss_weight', loss_weight)
        _check_number('maps_weight', maps_weight)
        self.loss_weight, self.maps_weight = float(loss_weight), float(maps_weight)
        self.maps = _paths('maps', maps, student) if maps_weight else []
        self.paths = []
        if loss_weight:
            self.paths = (outputs.default_outputs(student, self.maps) if paths is None
                          else outputs.chosen_outputs(student, _paths('outputs', paths, student)))
        self.outputs: dict[str, Output] = {}
        self.temperature = temperature
        self.teachers: list[Teacher] = []
        # What plain training draws must not depend on a teacher.
        with preserved_random_state():
            if self.is_active:
                self.teachers = build_teachers(teachers, student)
            elif loss_weight:
                raise ConfigError('outputs and maps are both empty: nothing would be distilled; name a head or a map')
            self.adapters = self._fit(student, demo_inputs) if self.is_active else nn.ModuleDict()

    def __deepcopy__(self, memo: Any) -> Distillation:
        return self

    @property
    def is_active(self) -> bool:
        """Whether anything is compared."""
        return bool(self.paths or self.maps)

    @property
    def compared(self) -> list[str]:
        """The parts that are compared."""
        return list(dict.fromkeys([*self.paths, *self.maps]))

    def take_adapters(self) -> nn.ModuleDict:
        """Return the 1x1 convolutions from the student's widths to the teachers', by :func:`_key`."""
        adapters, self.adapters = self.adapters, nn.ModuleDict()
        return adapters

    def _fit(self, student: nn.Module, demo_inputs: DemoInputs) -> nn.ModuleDict:
        """Run all models once, check that their results can be compared, and make the adapters that this needs.

        Raises:
            ConfigError: If one does not run, or shapes cannot agree.
        """
        adapters = nn.ModuleDict()
        models = [teacher.model for teacher in self.teachers]
        for teacher in self.teachers:
            for path in self.compared:
                check_path(teacher.model, path, teacher.name)
        with untouched(student, *models):
            own = self._probe(student, demo_inputs)
            for path in self.paths:
                self.outputs[path] = outputs.output_of(student.get_submodule(path), path, own[0][path])
            for number, (teacher, found) in enumerate(zip(self.teachers, own[1])):
                for path in self.paths:
                    self._check_output(path, teacher, own[0][path], found[path])
                for path in self.maps:
                    given, there = (outputs.maps_of(path, results[path]) for results in (own[0], found))
                    outputs.check_shapes(given, there, f'{teacher.name}: {path}', True, same_width=False)
                    for level, (a, b) in enumerate(zip(given, there)):
                        if a.shape[1] != b.shape[1]:
                            adapters[_key(path, number, level)] = nn.Conv2d(a.shape[1], b.shape[1], 1)
        return adapters

    def _check_output(self, path: str, teacher: Teacher, given: Any, found: Any) -> None:
        output = self.outputs[path]
        other = outputs.output_of(teacher.model.get_submodule(path), path, found)
        if other.name != output.name:
            raise ConfigError(f'{teacher.name}: {path} gives {other.name}, {outputs.described(found)}; the student\'s '
                              f'gives {output.name}, {outputs.described(given)}')
        outputs.check_shapes(output.pick(given), other.pick(found), f'{teacher.name}: {path}', output.resizable)

    def _probe(self, student: nn.Module, demo_inputs: DemoInputs) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what the compared parts of the student, and of each teacher, give for one and the same input."""
        forward = eval_pass(student, demo_inputs)
        with recorded(student, self.compared) as own:
            _run('the student', student, lambda: forward(student))
        _check_reached('the student', self.compared, own)
        found = []
        for teacher in self.teachers:
            if isinstance(forward, OnImages):
                samples = data_samples(student, forward.images)
                results = _run(teacher.name, teacher.model,
                               lambda t=teacher, s=samples: t.results(self.compared, forward.images, s))
            else:
                with recorded(teacher.model, self.compared, stop=True) as results:
                    _run(teacher.name, teacher.model, lambda t=teacher: forward(t.model))
            _check_reached(teacher.name, self.compared, results)
            found.append(results)
        return own, found

    def losses(self, own: Mapping[str, Any], taught: Sequence[Mapping[str, Any]], adapters: nn.ModuleDict,
               ) -> dict[str, Tensor]:
        """Return what the student loses against its teachers, by the names under which it is logged.

        Args:
            own: Results of the student's parts.
            taught: The same of each teacher.
            adapters: The student's.

        Raises:
            ConfigError: If a part of the student gives something else in training than otherwise.
        """
        _check_reached('the student in training', self.compared, own)
        found: dict[str, Tensor] = {}
        if self.paths:
            found['loss_distill'] = self.loss_weight * sum(
                self._output_loss(path, own[path], [results[path] for results in taught]) for path in self.paths)
        for path in self.maps:
            parts = [self._map_loss(path, own[path], results[path], number, adapters)
                     for number, results in enumerate(taught)]
            found[f'loss_distill_{path.replace(".", "_")}'] = self.maps_weight * losses.mean(parts)
        return found

    def _output_loss(self, path: str, own: Any, taught: Sequence[Any]) -> Tensor:
        output = self.outputs[path]
        student = output.pick(own)
        teachers = [output.pick(result) for result in taught]
        if any(len(member) != len(student) for member in teachers):
            raise ConfigError(f'outputs: {path} returns {outputs.described(own)} in training and '
                              f'{outputs.described(taught[0])} otherwise; distil its inputs, by maps')
        if output.resizable:
            teachers = [[outputs.resized(maps, like) for maps, like in zip(member, student)] for member in teachers]
        return output.loss(student, teachers, self.temperature or output.temperature)

    def _map_loss(self, path: str, own: Any, result: Any, number: int, adapters: nn.ModuleDict) -> Tensor:
        pairs = list(zip(outputs.maps_of(path, own), outputs.maps_of(path, result)))
        parts = []
        for level, (given, there) in enumerate(pairs):
            key = _key(path, number, level)
            if key in adapters:
                given = adapters[key](given) if given.dim() == 4 else adapters[key](given[..., None, None]).flatten(1)
            parts.append(losses.map_loss(given, outputs.resized(there, given)))
        return losses.mean(parts)


def _key(path: str, teacher: int, level: int) -> str:
    """Return the name of an adapter; a module's name holds no dots."""
    return f'{path.replace(".", "_")}_{teacher}_{level}'


def _check_number(name: str, value: Any, positive: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (positive and value == 0):
        raise ConfigError(f'{name} should be a number {"above" if positive else "of at least"} 0, but got {value!r}')


def _paths(name: str, given: Any, student: nn.Module) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(path, str) for path in given):
        raise ConfigError(f'{name} should be a list of names of modules, but got {given!r:.200}')
    for path in given:
        check_path(student, path, name)
    return list(given)


def _run(name: str, model: nn.Module, run: Any) -> Any:
    try:
        return run()
    except ConfigError:
        raise
    except Exception as error:  # the code of a model may fail in any way
        raise ConfigError(f"{name}: does not run on the student's demo inputs: {failure_of(model, error)}") from error


def _check_reached(name: str, paths: Sequence[str], results: Mapping[str, Any]) -> None:
    for path in paths:
        if path not in results:
            raise ConfigError(f'{name}: {path} is not run by itself when the model is; name another module')


def batch_images(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the images of a call of a model.

    Raises:
        ConfigError: If its first argument, ``inputs``, is no tensor.
    """
    images = args[0] if args else kwargs.get('inputs')
    if not isinstance(images, torch.Tensor):
        raise ConfigError(f'the model is called with a {type(images).__name__} as inputs; distilled are models that '
                          'take a tensor of images')
    return images
