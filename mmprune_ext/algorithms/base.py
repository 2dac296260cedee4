"""The algorithm: what a pruning run's model is beside an instance of the user's own class."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmprune_ext.algorithms.loading import is_for_a_run, not_loaded, share_text, tensor_names, watched_loading
from mmprune_ext.algorithms.mixing import blank, mix_in, take_out
from mmprune_ext.analysis.report import Mended
from mmprune_ext.compact.checkpoint import RUN_UNITS, load_weights, plain_names, units_of_compact, units_of_run
from mmprune_ext.compact.compact_model import (
    Units,
    build_architecture,
    forget_pretrained,
    is_unit_file,
    joined_units,
    load_units,
    names_pretrained,
)
from mmprune_ext.errors import CheckpointError, ConfigError
from mmprune_ext.mutators import ChannelMutator
from mmprune_ext.mutators.score_file import ScoreFile
from mmprune_ext.registry import MODELS
from mmprune_ext.repair.mending import Mending, mend
from mmprune_ext.targets.target import Budget, RatioTarget
from mmprune_ext.units import UnitSet, slim
from mmprune_ext.units.stripes import same_stripes


class PruneAlgorithm:
    """Base of all algorithms: mixed into the user's model, so that the Runner trains the user's model.

    Building an algorithm builds the architecture and gives back that model, as an instance of its own
    class and of the algorithm: parameters, attributes, ``forward``, ``train()``, hooks and optimizer
    constructors meet the names that the dense model has. What an algorithm keeps in the model it annotates
    in its class body, as ``mutator`` is here; it leaves the model on export.

    The structure of the pruned model travels with ``state_dict()``, in the metadata that torch keeps for each
    module (where it keeps versions), not among the weights: their names are the dense model's.

    Args:
        architecture: The model to prune, or its config. A model that is given changes in place.
        mutator: The method's mutator, or its settings; by default the method's own, ``mutator_type``.
        init_cfg: Replaces the architecture's own, as in every OpenMMLab model.
        data_preprocessor: Handed in by the Runner from the config's top level.

    Attributes:
        required_hooks: Registered names of the hooks that a run needs; the tools add them to its
            config.
        mutator_type: The registered name of the method's mutator.
        paramwise: Settings for mmengine's ``paramwise_cfg.custom_keys`` of the method's own parameters, by a part of
            their names; the tools add them to a run whose channels are still to be found, and refuse a run that
            does not train these parameters.

    Raises:
        ConfigError: If the mutator is none, or the model cannot carry an algorithm.
    """

    required_hooks: tuple[str, ...] = ('mmprune_ext.PruningHook', 'mmprune_ext.EpochSeedHook')
    mutator_type: str = ''
    paramwise: Mapping[str, Mapping[str, float]] = {}
    mutator: ChannelMutator
    _loaded: set[str] | None  # names of the tensors that something has loaded; None: the weights are the caller's

    def __new__(cls, architecture: nn.Module | Mapping[str, Any], *_: Any,
                data_preprocessor: Mapping[str, Any] | None = None, **__: Any) -> PruneAlgorithm:
        with watched_loading() as loaded:
            model = mix_in(cls, build_architecture(architecture, data_preprocessor))
        model._loaded = None if model is architecture else _names_of(loaded, model)
        return model

    def __init__(self, architecture: nn.Module | Mapping[str, Any],
                 mutator: ChannelMutator | Mapping[str, Any] | None = None,
                 init_cfg: Mapping[str, Any] | None = None, *,
                 data_preprocessor: Mapping[str, Any] | None = None) -> None:
        if init_cfg is not None:
            self.init_cfg = copy.deepcopy(init_cfg)
        if mutator is None or isinstance(mutator, Mapping):
            settings = {'type': self.mutator_type, **(mutator or {})}
            kind = settings['type']
            self._check_own(MODELS.get(kind) if isinstance(kind, str) else kind)
            mutator = MODELS.build(settings)
        self.mutator = mutator
        if not isinstance(self.mutator, ChannelMutator):
            raise ConfigError(f'mutator should be a channel mutator such as L1Mutator, but got '
                              f'{type(self.mutator).__name__}')
        self._check_own(type(self.mutator))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by the two classes; their mixture is made where it is needed."""
        return blank, (type(self).algorithm_type, type(self).architecture_type), vars(self)

    def _check_own(self, mutator: Any) -> None:
        """Refuse the mutator of another method, which a config may have from its base."""
        own = MODELS.get(self.mutator_type) if self.mutator_type else None
        if own is None or not isinstance(mutator, type) or issubclass(mutator, own):
            return
        methods = [kind for kind in MODELS.module_dict.values() if isinstance(kind, type)
                   and issubclass(kind, PruneAlgorithm) and kind.mutator_type]
        for other in methods:
            if MODELS.get(other.mutator_type) is mutator:
                raise ConfigError(f'{type(self).algorithm_type.__name__}: mutator should be a {own.__name__}, but got '
                                  f'{mutator.__name__}, that of {other.__name__}; leave its type out, or say '
                                  f'{self.mutator_type}, or take the mutator of the base config away with '
                                  'mutator=dict(_delete_=True, ...)')

    @property
    def units(self) -> UnitSet:
        """The channel units of the dense architecture with the present choices."""
        return self.mutator.units

    @property
    def exported_units(self) -> UnitSet:
        """The channel units with the choices that :meth:`export_model` follows."""
        return self.units

    def _take_units(self, units: Units, checkpoint: str | None = None) -> None:
        """Take the structure from units that are known.

        The path of a channel-unit file begins a run: the dense weights are loaded, and the mutator takes the
        choices over (:meth:`ChannelMutator.transfer`), also those of a model with another head. Anything else
        is the structure of a run that goes on: it is taken as it is, and gets its weights from its checkpoint.

        Args:
            units: The units, as themselves, as content, or as the path of a file or of a checkpoint.
            checkpoint: Weights of the dense model, read only with the path of a channel-unit file; without
                them the architecture initialises itself.

        Raises:
            PruningError: If the units do not fit the model, or trained weights are to be pruned and the file
                does not say which channels stay.
            CheckpointError: If the checkpoint does not fit.
        """
        known = load_units(units)
        if not is_unit_file(units):
            self.mutator.prepare(self, known)
            return
        if self.mutator.needs_scores and (checkpoint is not None or names_pretrained(self)):
            known.require_choice(str(units))
        self._load_dense(checkpoint)
        self.mutator.transfer(self, known, str(units))

    def _load_dense(self, checkpoint: str | None) -> None:
        """Give the dense model its weights: those of a checkpoint, or those that it starts with by itself.

        A model that was given as one, and names no weights, keeps those that it has.
        """
        with watched_loading() as loaded:
            if checkpoint is not None:
                load_weights(self, checkpoint)
            elif self._loaded is None and not names_pretrained(self):
                return
            elif hasattr(super(), 'init_weights') and not getattr(self, 'is_init', False):
                super().init_weights()
        self._loaded = (self._loaded or set()) | _names_of(loaded, self)
        source = (f'from {checkpoint}' if checkpoint is not None else 'as init_cfg says' if names_pretrained(self)
                  else 'for neither checkpoint nor init_cfg names weights')
        print_log(f'{type(self).algorithm_type.__name__}: {share_text(self, self._loaded, source)}', logger='current',
                  level=logging.INFO if self._loaded else logging.WARNING)

    def _load_if_any(self, checkpoint: str | None) -> bool:
        """Give the dense model weights where training does not start from scratch, and return whether it does not."""
        if checkpoint is None and not names_pretrained(self):
            return False
        PruneAlgorithm._load_dense(self, checkpoint)
        return True

    def export_model(self) -> nn.Module:
        """Return the compact model: the architecture's own class, plain layers, no trace of the algorithm."""
        return take_out(copy.deepcopy(self))

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, '_metadata', {}).get(prefix[:-1])
        if metadata is not None and self._has_structure():
            metadata[RUN_UNITS] = json.dumps(self.units.to_json(), separators=(',', ':'))

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Any], prefix: str,
                              local_metadata: Mapping[str, Any], *further: Any) -> None:
        """Check that weights belong to this structure before torch copies them.

        Raises:
            CheckpointError: If other channels were pruned there, or none.
        """
        units = units_of_run(state_dict, local_metadata, prefix)
        plain_names(state_dict, prefix)
        if self._has_structure():
            if units is not None:
                _check_same(self.units, units)
            else:
                self._check_not_dense(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *further)

    def _has_structure(self) -> bool:
        return 'mutator' in vars(self) and self.mutator.is_prepared

    def _check_not_dense(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        pruned = [unit for unit in self.units.values() if unit.keep < unit.num_channels]
        for path in dict.fromkeys(m.module for unit in pruned for m in unit.members if m.dim is None):
            own = getattr(self.get_submodule(path), 'weight', None)
            given = state_dict.get(f'{prefix}{path}.weight')
            if own is not None and given is not None and given.shape != own.shape:
                raise CheckpointError(
                    f'the weights do not fit the pruned model: "{path}.weight" has shape {tuple(given.shape)}, '
                    f'the model {tuple(own.shape)}. Those of the dense model are needed before it is pruned: give '
                    'them as model.checkpoint, or as load_from to tools/train.py')


def _names_of(loaded: set[Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in tensor_names(model).items() if value in loaded}


def _check_same(units: UnitSet, saved: UnitSet) -> None:
    for name, unit in units.items():
        if name not in saved or saved[name].indices != unit.indices:
            raise CheckpointError(
                f'the checkpoint was written by a run that pruned other channels (first: unit "{name}"); resume '
                'with tools/train.py --resume, which takes the structure from the checkpoint, or set model.units '
                'to the units.json of that run')
    if not same_stripes(units.stripes, saved.stripes) or units.shortcuts != saved.shortcuts:
        raise CheckpointError('the checkpoint was written by a run that has left other stripes of its filters; resume '
                              'with tools/train.py --resume, which takes the structure from the checkpoint')


class OneShotAlgorithm(PruneAlgorithm):
    """A method that makes a pretrained model compact at once, while it is being built.

    What is trained afterwards is the compact model, at the compact model's speed; DDP, the
    optimizer and EMA see nothing else.

    Args:
        architecture: The model to prune, or its config.
        mutator: The method's mutator, or its config; the method's own with its defaults otherwise.
        target_pruning_ratio: What to REMOVE from each unit: a ratio, a dict, a JSON file or a
            sparsity string (:func:`mmprune_ext.targets.target.keeps_from_ratios`).
        budget: Or what REMAINS of the whole: ``dict(flops=0.5)``, or
            ``dict(flops=0.5, spread='sensitivity', sensitivity='sensitivity.json')``
            (:class:`mmprune_ext.mutators.Budget`).
        scores: Scores that ``tools/score.py`` wrote, or the path of its file; otherwise they are
            computed.
        checkpoint: Weights of the dense model; without it those that the architecture's own ``init_cfg``
            names. Weights that an export wrote (``compact.pth``) are pruned further: ratios are of the channels
            that are left there, a budget is a share of the dense model, and the units hold the choices of all
            rounds, relative to the dense model.
        units: A channel-unit file with choices, also of a model with another head: the dense weights keep
            the channels that it names, nothing is scored, and a target beside it is not read. As a dict, or
            as the path of a run's checkpoint, it is the structure of a run that goes on: ``checkpoint`` is
            not read then, the weights are the run's own.
        init_cfg: Replaces the architecture's own.
        calibration: The data that a :class:`CalibratedAlgorithm` scores on, ``dict(num_batches=5, dataloader=...)``
            (:class:`mmprune_ext.mutators.calibration.Calibration`); not used with ``scores`` or ``units``.
        repair: How the pruned model is mended before anything is trained, ``dict(num_images=1024)``
            (:class:`mmprune_ext.repair.mending.Mending`); by default it is not. A run that goes on is not mended again.
        from_scratch: Prune weights that nothing has loaded. Without it those of the layers to prune have to be
            loaded, unless ``architecture`` is a model, whose weights are taken as they are.
        data_preprocessor: Handed in by the Runner from the config's top level.

    Raises:
        ConfigError: If ``calibration`` is given to a method that needs no data, or stands beside a mutator that is
            built already; if ``from_scratch`` stands beside a checkpoint. If random weights are pruned without it:
            at once in a run of the tools, else at the beginning of training, after a warning.

    Attributes:
        mended: What became of it, where it was.
        short_name: The method's name on the command line (``tools/prune.py --algorithm``).
        needs_data: Whether its mutator scores on data, and takes ``calibration``.
    """

    short_name = ''
    needs_data = False
    mended: Mended | None = None
    _refused: str | None  # why the weights that were pruned should not be trained

    def __init__(self, architecture: nn.Module | Mapping[str, Any],
                 mutator: ChannelMutator | Mapping[str, Any] | None = None,
                 target_pruning_ratio: RatioTarget | None = None,
                 budget: Mapping[str, Any] | None = None,
                 scores: ScoreFile | str | None = None,
                 checkpoint: str | None = None,
                 units: Units | None = None,
                 init_cfg: Mapping[str, Any] | None = None,
                 calibration: Mapping[str, Any] | None = None, *,
                 repair: Mapping[str, Any] | Mending | None = None,
                 from_scratch: bool = False,
                 data_preprocessor: Mapping[str, Any] | None = None) -> None:
        if calibration is not None:
            mutator = self._with_calibration(mutator, calibration)
        super().__init__(architecture, mutator, init_cfg)
        self._refused = None
        if units is None or is_unit_file(units):
            self._require_weights(checkpoint, from_scratch)
        mending = None if repair is None else Mending.from_config(repair)
        # Read before anything that takes long.
        stored = ScoreFile.load(scores) if units is None and isinstance(scores, str) else scores
        measured = Budget.from_config(budget).sensitivity if units is None and budget is not None else None
        before = whole = None
        if units is not None:
            self._take_units(units, checkpoint)
            self._check_loaded(from_scratch or not is_unit_file(units))
        else:
            before = self._units_before(checkpoint)
            if before is not None:
                whole = None if budget is None else self.mutator.resource(self, budget, before)
                slim(self, before)
            self._load_dense(checkpoint)
            self.mutator.prepare(self)
            self._check_loaded(from_scratch)
            known = None if stored is None else stored.checked(self, self.units, self.short_name)
            if measured is not None:
                measured.checked(self, self.units, self.short_name)
            self.mutator.choose(self, target_pruning_ratio, budget, known, whole)
        if mending is None or not (units is None or is_unit_file(units)):
            slim(self, self.units)
        else:
            dense = take_out(copy.deepcopy(self))
            slim(self, self.units)
            self.mended = mend(self, dense, self.units, mending)
        if before is not None:
            self.mutator.take(joined_units(before, self.units, f'checkpoint {checkpoint}'))
        forget_pretrained(self)
        kept = sum(unit.keep for unit in self.units.prunable.values())
        total = sum(unit.num_channels for unit in self.units.prunable.values())
        print_log(f'{type(self).algorithm_type.__name__}: kept {kept} of {total} channels in '
                  f'{len(self.units.prunable)} prunable units', logger='current')

    def _with_calibration(self, mutator: ChannelMutator | Mapping[str, Any] | None,
                          calibration: Mapping[str, Any]) -> Mapping[str, Any]:
        name = type(self).algorithm_type.__name__
        if not self.needs_data:
            raise ConfigError(f'{name}: takes no calibration, for it scores weights alone; leave it out')
        if mutator is not None and not isinstance(mutator, Mapping):
            raise ConfigError(f'{name}: give calibration to the mutator, which is built already')
        return {**(mutator or {}), 'calibration': calibration}

    def _require_weights(self, checkpoint: str | None, from_scratch: bool) -> None:
        name = type(self).algorithm_type.__name__
        if checkpoint is not None:
            if from_scratch:
                raise ConfigError(f'{name}: from_scratch=True prunes random weights, and checkpoint ({checkpoint}) '
                                  'names others; take one of the two out')
        elif not (from_scratch or self._loaded is None or self._loaded or names_pretrained(self)):
            self._refuse(f'{name}: there are no trained weights to prune; set model.checkpoint to a checkpoint of the '
                         'dense model, or load_from where tools/train.py reads the config, or init_cfg of the '
                         'architecture to weights (type="Pretrained"). from_scratch=True in the model section prunes '
                         'random ones')

    def _check_loaded(self, from_scratch: bool) -> None:
        if self._loaded is not None and not from_scratch and self._refused is None:
            self._refuse(not_loaded(self.units, self, self._loaded, type(self).algorithm_type.__name__))

    def _refuse(self, why: str | None) -> None:
        """Refuse to prune random weights: at once in a run of the tools, else when the model is to be trained."""
        if why is not None and is_for_a_run():
            raise ConfigError(why)
        if why is not None:
            print_log(why, logger='current', level=logging.WARNING)
        self._refused = why

    def _units_before(self, checkpoint: str | None) -> UnitSet | None:
        """Return the units by which this dense model became what a checkpoint holds, ``None`` if it was not pruned."""
        found = None if checkpoint is None else units_of_compact(checkpoint)
        return found if found is not None and found.describes(self) else None

    def init_weights(self) -> None:
        """Leave the weights alone: they were loaded before pruning.

        Raises:
            ConfigError: If they were not, and nothing says that this is meant.
        """
        if self._refused is not None:
            raise ConfigError(self._refused)


class CalibratedAlgorithm(OneShotAlgorithm):
    """A one-shot method whose mutator scores on data: it takes ``calibration``.

    This project's tools fill in the dataloader where there is none.
    """

    needs_data = True
