"""Why channels of a unit cannot be removed."""

from enum import Enum


class Reason(str, Enum):
    """Why a channel unit is not prunable. The value is the text that tables and files show."""

    OUTPUT = 'its channels are an output of the model'
    OUT_OF_SCOPE = 'it lies outside the pruning scope'
    EXCLUDED = 'it is excluded by the configuration'
    SINGLE = 'all its channels are tied into one'
    NO_LAYER = 'no layer of learned weights produces it'
    ATTENTION = 'its channels are heads of an attention layer'
    STATISTICS = 'a statistic over its channels would change'
    SPACE = 'its channels are mixed with positions in space'
    OUTER = 'its channels meet other channels in a matrix or broadcast product'
    WEIGHT = 'a weight is computed in a way that does not allow for fewer channels'
    LAYER = 'a layer of unsupported kind uses it'
    DECISION = 'code selects or branches by its values'
    OPERATOR = 'an operator of unknown kind reads it'
    FUNCTION = 'a custom autograd function of unknown kind reads it'
    NOT_REACHED = 'a layer that may read it was not reached by the demo inputs'
    FIXED_SIZE = 'the code depends on its size: the slimmed model does not run'
    VALUES = 'the slimmed model runs but computes something else'
