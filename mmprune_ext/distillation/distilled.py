"""Training beside teachers, as what the Runner trains."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmprune_ext.algorithms.mixing import mixed_class
from mmprune_ext.compact.checkpoint import ADAPTERS
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.distillation.capture import recorded
from mmprune_ext.distillation.distillation import Distillation, batch_images
from mmprune_ext.distillation.teachers import check_teachers
from mmprune_ext.errors import ConfigError
from mmprune_ext.model_config import is_distilled
from mmprune_ext.registry import MODELS
from mmprune_ext.units.demo_inputs import DemoInputs


@MODELS.register_module()
class Distilled:
    """Train a model beside teachers: its own losses, and what its outputs lose against the mean of theirs.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710, as re-implemented with ensembles of
    the networks of successive rounds: ``T^2 KL(teacher || student)`` plus cross-entropy, ``T = 5``. Building it gives
    the student itself, as an instance of its own class and of this one::

        model = dict(
            type='mmprune_ext.Distilled',
            student=dict(type='ImageClassifier', ...),      # any model section: dense, compact, or a pruning run's
            teachers=[dict(config='resnet56.py', checkpoint='resnet56.pth'), dict(config='out/compact_config.py')],
            temperature=5.)

    While the student computes its losses in training, the teachers see the same batch, augmented as it is and in their
    own normalisation. In all else it is the student.

    Args:
        student: Config of the model that is trained.
        teachers: One ``dict(config=..., checkpoint=...)`` a member of the ensemble. A compact config names its own
            weights. ``data_preprocessor`` in it overrides settings of the teacher's own, such as ``to_rgb``.
        temperature: Of logits, above 0; by default 5 for logits of whole images and 1 for those of places.
        loss_weight: Of what the outputs lose; 0 for none.
        outputs: Paths of the heads whose outputs are compared; by default ``head``, ``bbox_head`` or ``decode_head``.
        maps: Paths of parts whose maps are compared as well, ``['neck']`` or ``['backbone']``. Where a teacher's are
            wider or narrower the student gets a 1x1 convolution, which is trained with it and left out of its export.
        maps_weight: Of what each of ``maps`` loses.
        demo_inputs: What all models run on once to see that shapes agree; the tools fill it in.
        data_preprocessor: Handed in by the Runner from the config's top level; the student's.

    Raises:
        PruningError: If settings are wrong, a teacher cannot be built, or its outputs cannot be compared.
    """

    distillation: Distillation

    def __new__(cls, student: Mapping[str, Any], teachers: Sequence[Mapping[str, Any]] | None = None, *_: Any,
                data_preprocessor: Mapping[str, Any] | None = None, **settings: Any) -> Distilled:
        if not isinstance(student, Mapping) or is_distilled(student):
            raise ConfigError(f'student should be the section of a model without teachers, but got {student!r:.200}')
        check_teachers({**settings, 'teachers': teachers})  # building the student may take long: it may be pruned
        model = build_architecture(student, data_preprocessor)
        for name in ('distillation', ADAPTERS):
            if hasattr(model, name):
                raise ConfigError(f'student: {type(model).__name__} has an attribute "{name}", under which its '
                                  'distillation is kept; rename it in the model')
        model.__class__ = distilled_class(type(model))
        return model

    def __init__(self, student: Mapping[str, Any], teachers: Sequence[Mapping[str, Any]],
                 temperature: float | None = None, loss_weight: float = 1.0, outputs: Sequence[str] | None = None,
                 maps: Sequence[str] = (), maps_weight: float = 1.0, demo_inputs: DemoInputs = None, *,
                 data_preprocessor: Mapping[str, Any] | None = None) -> None:
        distillation = Distillation(self, teachers, temperature, loss_weight, maps_weight, outputs, maps, demo_inputs)
        adapters = distillation.take_adapters()
        if len(adapters):
            setattr(self, ADAPTERS, adapters)
        self.distillation = distillation
        print_log(f'Distilled: {len(distillation.teachers)} teachers, compared: '
                  f'{", ".join(distillation.compared) or "nothing"}; {len(adapters)} adapters', logger='current')

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; arguments and results are its own, and losses in training have those of distillation too."""
        distillation = vars(self).get('distillation')
        if not (self.training and kwargs.get('mode') == 'loss' and distillation and distillation.is_active):
            return super().__call__(*args, **kwargs)
        images = batch_images(args, kwargs)
        others = {key: value for key, value in kwargs.items() if key != 'inputs'}
        # Before the student, whose graph takes memory.
        taught = [teacher.results(distillation.compared, images, *args[1:], **others)
                  for teacher in distillation.teachers]
        with recorded(self, distillation.compared) as own:
            losses = super().__call__(*args, **kwargs)
        return {**losses, **distillation.losses(own, taught, getattr(self, ADAPTERS, {}))}

    def without_teachers(self) -> nn.Module:
        """Return a copy of the student as an instance of its own class alone."""
        student = copy.deepcopy(self)
        student.__class__ = type(self).student_type
        del vars(student)['distillation']
        student._modules.pop(ADAPTERS, None)
        return student

    def export_model(self) -> nn.Module:
        """Return the student's compact model (of a pruning run), or the student."""
        student = self.without_teachers()
        return student.export_model() if hasattr(student, 'export_model') else student

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by the classes; their mixture is made where it is needed."""
        student = type(self).student_type
        parts = (student,)
        if hasattr(student, 'algorithm_type'):
            parts = (student.algorithm_type, student.architecture_type)
        return blank, parts, vars(self)


@functools.cache
def distilled_class(student: type) -> type:
    """Return the class of models that are distilled; it goes by the student's name, as messages and tools do."""
    return type(student)(student.__name__, (Distilled, student), {
        '__module__': student.__module__,
        '__qualname__': f'{Distilled.__name__}[{student.__qualname__}]',
        '__doc__': student.__doc__,
        'student_type': student})


def blank(*parts: type) -> nn.Module:
    """Return an instance without content, for copies and pickles to fill."""
    return object.__new__(distilled_class(parts[0] if len(parts) == 1 else mixed_class(*parts)))
