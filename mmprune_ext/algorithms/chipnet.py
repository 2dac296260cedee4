"""ChipNet, budget-aware pruning with continuous Heaviside gates, as an algorithm for the Runner."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmprune_ext.algorithms.base import PruneAlgorithm
from mmprune_ext.compact.compact_model import Units, forget_pretrained, is_unit_file, load_units
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators import ChannelMutator, ChipNetMutator
from mmprune_ext.ops.channel_gate import ChannelGates
from mmprune_ext.ops.gated_layer import remove_gates
from mmprune_ext.registry import MODELS
from mmprune_ext.scores.heaviside import GateSchedule, crisp_share, crispness_loss, settling, soft_count
from mmprune_ext.targets.gate_budget import GateBudget
from mmprune_ext.units import UnitSet, slim


@MODELS.register_module()
class ChipNet(PruneAlgorithm):
    """Learn which channels of a trained model stay under a budget.

    Source: Tiwari et al., "ChipNet: Budget-Aware Pruning with Heaviside Continuous Approximations", ICLR 2021,
    arXiv 2102.07156. Every channel of a unit is multiplied by a gate (:class:`mmprune_ext.ops.ChannelGate`)
    in all layers that the unit's channels leave for good. Weights and gates are trained together by

        task loss + w1 * sum_b weight_b (V_b - V0_b)^2 + w2 * mean (z - z~)^2

    with ``V_b`` the share of a resource that soft counts of channels leave and ``V0_b`` its budget, while the gates
    sharpen. In eval mode the model is the network as it would be pruned now: the channels above the lowest
    threshold on the gates that meets the budget pass as they are, all others are zero. In the last part of a search
    it is decided which channels stay, and the gates go there bit by bit, so that pruning changes nothing any more (this
    is not of the paper, where gates end as they are)::

        model = dict(
            type='mmprune_ext.ChipNet',
            architecture=dict(type='ImageClassifier', ...),
            budget=dict(flops=0.5),
            checkpoint='resnet50.pth')

    Args:
        architecture: The model to prune, or its config.
        mutator: A ``ChipNetMutator``, or its config; one with its defaults otherwise.
        budget: What REMAINS: ``dict(flops=0.5)``, of ``channels``, ``volume``, ``params``, ``flops``, one or
            several with weights (:class:`mmprune_ext.targets.gate_budget.GateBudget`). Needed for a search.
        checkpoint: Weights of the dense model; without it the architecture's own ``init_cfg`` initialises.
        units: A channel-unit file, also of a model with another head. With choices, the model is made compact by
            them at once: what is trained is the compact model. Without, a search begins, and nothing is traced. Of a
            dict, and of the path of a run's checkpoint, which is resumed, ``checkpoint`` is not read.
        budget_weight: ``w1``.
        crispness_weight: ``w2``.
        schedule: How the gates sharpen: settings of :class:`mmprune_ext.scores.heaviside.GateSchedule`.
        by_epoch: Whether a step of the schedule is epochs, or iterations.
        step_freq: Epochs (or iterations) of a step, at least 1.
        settle: Share of a search, its last, in which the gates go to what was decided; 0 as published.
        init_cfg: Replaces the architecture's own.
        data_preprocessor: Handed in by the Runner from the config's top level.

    Attributes:
        channel_gates: The gates, while channels are searched.
        task_loss: The sum of the model's own losses in the last step, a scalar.

    Raises:
        ConfigError: For another mutator, or a setting that cannot work.
        TargetError: For a budget that is malformed or cannot be met.
        PruningError: For units that cannot be pruned.
    """

    mutator_type = 'mmprune_ext.ChipNetMutator'
    required_hooks = (*PruneAlgorithm.required_hooks, 'mmprune_ext.GateHook')
    paramwise = {'channel_gates': {'decay_mult': 0.0}}  # which would pull gates half open
    channel_gates: ChannelGates
    loss_weights: tuple[float, float]
    by_epoch: bool
    step_freq: int
    settle: float
    scheduled: bool
    soft_in_eval: bool
    task_loss: Tensor | None
    _began: bool
    _masks_of: Tensor | None

    def __init__(self, architecture: nn.Module | Mapping[str, Any],
                 mutator: ChannelMutator | Mapping[str, Any] | None = None,
                 budget: Mapping[str, Any] | None = None,
                 checkpoint: str | None = None,
                 units: Units | None = None,
                 budget_weight: float = 30.0,
                 crispness_weight: float = 10.0,
                 schedule: Mapping[str, Any] | None = None,
                 by_epoch: bool = True,
                 step_freq: int = 1,
                 settle: float = 0.1,
                 init_cfg: Mapping[str, Any] | None = None, *,
                 data_preprocessor: Mapping[str, Any] | None = None) -> None:
        weights = _not_negative(budget_weight=budget_weight, crispness_weight=crispness_weight)
        if type(step_freq) is not int or step_freq < 1:
            raise ConfigError(f'ChipNet: step_freq is the number of {"epochs" if by_epoch else "iterations"} of a '
                              f'step of the schedule, an integer of at least 1, but got {step_freq!r}')
        if isinstance(settle, bool) or not isinstance(settle, (int, float)) or not 0 <= settle < 1:
            raise ConfigError(f'ChipNet: settle is a share of the search, at least 0 and below 1, but got {settle!r}')
        sharpening = _schedule(schedule)
        super().__init__(architecture, mutator, init_cfg)
        if not isinstance(self.mutator, ChipNetMutator):
            raise ConfigError(f'ChipNet: mutator should be a ChipNetMutator, but got {type(self.mutator).__name__}')
        self.loss_weights, self.by_epoch, self.step_freq = weights, by_epoch, step_freq
        self.settle = float(settle)
        self.scheduled = False  # whether something moves the schedule on while this model is trained
        self.soft_in_eval = False
        self.task_loss = None
        self._began = False
        self._masks_of = None
        known = None if units is None else load_units(units)
        if known is not None and known.has_choices:
            self._take_units(units, checkpoint)
            slim(self, self.units)
        else:
            parsed = GateBudget.from_config(budget)
            if known is None or is_unit_file(units):
                self._load_dense(checkpoint)
            self.mutator.prepare(self, known)
            self.channel_gates = self.mutator.gate(self, parsed, sharpening)
            self._set_gates()
        forget_pretrained(self)
        self._log()

    def _log(self) -> None:
        prunable = self.units.prunable
        total = sum(unit.num_channels for unit in prunable.values())
        if self.is_searching:
            budget = self.mutator.budget
            wanted = ', '.join(f'{share:.2%} of {name}' for name, share in budget.shares.items())
            wanted += f' of {budget.scope}' if budget.scope else ''
            text = f'{total} gates in {len(prunable)} prunable units, to keep {wanted}'
        else:
            kept = sum(unit.keep for unit in prunable.values())
            text = f'kept {kept} of {total} channels in {len(prunable)} prunable units'
        print_log(f'ChipNet: {text}', logger='current')

    @property
    def is_searching(self) -> bool:
        """Whether channels are still searched: there are gates, and no channel is gone."""
        return 'channel_gates' in self._modules

    def init_weights(self) -> None:
        """Leave the weights alone: they were loaded, or drawn, when the model was built."""

    # ------------------------------------------------------------ gates

    def set_step(self, step: int) -> None:
        """Sharpen the gates to what the schedule says after so many steps (epochs, in the paper)."""
        self.scheduled = True
        self.channel_gates.set_step(step)

    def set_progress(self, iteration: int, total: int) -> None:
        """Let the gates settle as far as they do in an iteration of a search; in the first of these, decide.

        Args:
            iteration: Number of the iteration, from 0.
            total: Iterations of the whole search.
        """
        settled = settling(iteration, total, self.settle)
        turns = bool(settled) != bool(self.channel_gates.settled)
        # Asked only where it may matter: an accelerator would be waited for.
        if (turns or not self._began) and bool(settled) != bool(self.channel_gates.decided):
            # What an earlier, or a shorter search has decided is open again.
            self.channel_gates.decide(self._masks() if settled else None)
            self._masks_of = None
        self._began = True
        self.channel_gates.set_settled(settled)

    def train(self, mode: bool = True) -> nn.Module:
        """Set train mode, with soft gates, or eval mode, with the channels that would stay now."""
        super().train(mode)
        if self.is_searching:
            self._set_gates()
        return self

    def _set_gates(self) -> None:
        self.mutator.attach(self, self.channel_gates)
        if self.training or self.soft_in_eval:
            self.channel_gates.harden(None)
            self._masks_of = None
            return
        if bool(self.channel_gates.decided):
            self.channel_gates.harden({name: gate.chosen for name, gate in self.channel_gates.items()})
            return
        psi = self.channel_gates.psi().detach().clone()
        # By value: averaging hooks exchange parameters behind the module's back.
        if self._masks_of is None or not torch.equal(psi, self._masks_of.to(psi.device)):
            self.channel_gates.harden(self._masks())
            self._masks_of = psi

    def _masks(self) -> dict[str, Tensor]:
        """Return the channels that would stay now, bool ``(num_channels,)`` by prunable unit."""
        masks = {}
        for name, unit in self.exported_units.prunable.items():
            masks[name] = torch.zeros(unit.num_channels, dtype=torch.bool)
            masks[name][unit.indices] = True
        return masks

    @contextmanager
    def soft_evaluation(self) -> Iterator[None]:
        """Let eval mode be the network with its soft gates, for a block."""
        self.soft_in_eval = True
        try:
            yield
        finally:
            self.soft_in_eval = False

    @property
    def exported_units(self) -> UnitSet:
        """The channel units with the channels that stay; in a search, those that would stay now."""
        if not self.is_searching:
            return self.units
        if not bool(self.channel_gates.decided):
            return copy.deepcopy(self.mutator).choose(self)
        units = self.units.copy()
        for name, gate in self.channel_gates.items():
            units[name].choose(gate.chosen.nonzero().flatten().tolist())
        return units

    def gate_statistics(self) -> dict[str, float]:
        """Return what the gates are like.

        Returns:
            ``crisp``: share of gates below 0.05 or above 0.95, as they act; ``learned``: of those that are so by
            themselves, whatever was decided; ``soft_flops`` and the like: share of a resource that soft counts of
            the acting gates leave; ``hard_flops``: that of the network as it would be pruned now.
        """
        with torch.no_grad():
            gates = self.channel_gates
            values = gates.acting()
            learned = crisp_share(gates.relaxed_and_soft()[1])
            soft = self.mutator.soft_shares(gates.per_unit(soft_count(values, gates.steepness)))
        keeps = {name: unit.keep for name, unit in self.exported_units.prunable.items()}
        return {'crisp': crisp_share(values), 'learned': learned,
                **{f'soft_{name}': float(share) for name, share in soft.items()},
                **{f'hard_{name}': share for name, share in self.mutator.shares(keeps).items()}}

    # ------------------------------------------------------------ training

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; arguments and results are its own, losses with those of the gates.

        Raises:
            ConfigError: In training, if nothing moves the schedule on.
        """
        if not self.is_searching:
            return super().__call__(*args, **kwargs)
        self._set_gates()
        result = super().__call__(*args, **kwargs)
        mode = kwargs.get('mode', args[2] if len(args) > 2 else None)
        if self.training and mode == 'loss' and isinstance(result, Mapping):
            if not self.scheduled:
                raise ConfigError("ChipNet: nothing sharpens the gates; add dict(type='mmprune_ext.GateHook') to "
                                  'custom_hooks (tools/train.py does it by itself), or call set_step(step) in your '
                                  'loop')
            self.task_loss = self.parse_losses(dict(result))[0].detach()
            result = {**result, **self.gate_losses()}
        return result

    def gate_losses(self) -> dict[str, Tensor]:
        """Return the weighted losses of budget and crispness, scalars."""
        gates, budget = self.channel_gates, self.mutator.budget
        relaxed, values = gates.relaxed_and_soft()
        # What was decided needs no loss any more.
        undecided = 1 - gates.settled
        shares = self.mutator.soft_shares(gates.per_unit(soft_count(values, gates.steepness)))
        excess = sum(budget.weights[name] * (share - budget.shares[name]) ** 2 for name, share in shares.items())
        return {'loss_budget': undecided * self.loss_weights[0] * excess,
                'loss_crispness': undecided * self.loss_weights[1] * crispness_loss(relaxed, values)}

    # ------------------------------------------------------------ export

    def export_model(self) -> nn.Module:
        """Return the compact model; in a search, that of the channels that would stay now."""
        model = super().export_model()
        if self.is_searching:
            del model.channel_gates
            slim(remove_gates(model), self.exported_units)
        return model


def _schedule(settings: Mapping[str, Any] | None) -> GateSchedule:
    try:
        return GateSchedule(**(settings or {}))
    except TypeError as error:
        raise ConfigError(f'ChipNet: schedule takes beta, gamma and steepness, but got {settings!r:.100}') from error


def _not_negative(**weights: float) -> tuple[float, ...]:
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ConfigError(f'ChipNet: {name} should be a number of at least 0, but got {weight!r}')
    return tuple(float(weight) for weight in weights.values())
