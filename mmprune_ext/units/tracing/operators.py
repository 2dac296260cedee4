"""How each kind of operator carries channel labels from its inputs to its outputs.

Every rule takes the tracer, the call, and the outputs that the operator has already computed, and
attaches labels to the outputs. There is no rule per network: a few kinds cover nearly everything
(movement in ``rules_movement``, element-wise operators and reductions in ``rules_values``, matrix
products in ``rules_products``), and an operator of unknown kind freezes the labels that enter it,
with its name as the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


@dataclass
class Call:
    """One executed operator.

    Attributes:
        func: The operator's overload (``torch.ops.aten.add.Tensor``).
        args: Positional arguments.
        kwargs: Keyword arguments.
        out: What it returned.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """Operator name without namespace and overload (``add``)."""
        return self.func._schema.name.split('::')[-1]

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operator's schema; the default also for ``None``."""
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                given = position < len(self.args)
                value = self.args[position] if given else self.kwargs.get(name)
                return default if value is None else value
        return default

    @property
    def in_place(self) -> bool:
        """Whether the result is written into the first argument."""
        return self.func._schema.is_mutable and any(
            out is self.args[0] for out in self.outputs() if self.args)

    def outputs(self) -> list[Tensor]:
        """Return the output tensors."""
        return [leaf for leaf in tree_flatten(self.out)[0] if isinstance(leaf, Tensor)]


Rule = Callable[['Tracer', Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name."""
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function
    return register


def apply_rule(tracer: Tracer, call: Call) -> None:
    """Propagate labels through one call."""
    # What a tensor held before it is written to by ``out=`` has no part in the result.
    call.kwargs = {name: value for name, value in call.kwargs.items() if name != 'out'}
    rule_of(call)(tracer, call)


def rule_of(call: Call) -> Rule:
    """Return the rule of a call's operator; of its functional form where it works in place."""
    found = RULES.get(call.name)
    if found is None and torch.Tag.pointwise in call.func.tags:
        found = RULES['pointwise']
    if found is None and call.name.rstrip('_') != call.name:
        found = RULES.get(call.name.rstrip('_'))
    return found or unknown


def unknown(tracer: Tracer, call: Call) -> None:
    """Freeze the labels that enter an operator whose kind is not known."""
    tracer.freeze_inputs((call.args, call.kwargs), Reason.OPERATOR, str(call.func))


@rule('empty', 'empty_like', 'zeros', 'zeros_like', 'ones', 'ones_like', 'full', 'full_like',
      'new_empty', 'new_zeros', 'new_ones', 'new_full', 'arange', 'linspace', 'rand_like',
      'randn_like', 'randperm', 'randint', 'rand', 'randn', 'eye', 'scalar_tensor', 'lift_fresh',
      'normal_', 'uniform_', 'bernoulli_', 'zero_', 'fill_', 'random_', 'zero', 'fill',
      'shape', 'sym_size', 'size', 'empty_strided', 'new_empty_strided', 'tril_indices',
      'is_same_size')
def unlabelled(tracer: Tracer, call: Call) -> None:
    """Give a result that holds no channel's values: new constants, sizes, positions."""
    for out in call.outputs():
        tracer.write(out, None)
