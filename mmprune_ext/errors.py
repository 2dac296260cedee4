"""Errors that a user can cause and mend.

Every message names what failed, where (unit, module path or file), what was found, what was
expected, and what to do. The command-line tools print such a message alone and exit with code 2;
anything else is a defect of this package and keeps its traceback.
"""


class PruningError(ValueError):
    """Base of all errors caused by input: a config, a checkpoint, a unit file, a target.

    Attributes:
        exit_code: What a command ends with.
    """

    exit_code = 2


class TraceError(PruningError):
    """The model could not be run on its demo inputs, or has no channel that can be pruned."""


class UnitFileError(PruningError):
    """A channel-unit file is unreadable, malformed, or belongs to another model."""


class TargetError(PruningError):
    """A pruning target is malformed or cannot be met."""


class CheckpointError(PruningError):
    """A checkpoint is missing, truncated, or does not fit the model."""


class ConfigError(PruningError):
    """A config lacks a section or holds a value that cannot work."""


class StepError(PruningError):
    """A command that was started as one step of several has failed; its exit code is passed on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
