"""Every error that natc raises on purpose; all derive from `NatcError`."""

from __future__ import annotations


class NatcError(Exception):
    """A problem that a user can act on; its message is one complete sentence or two."""


class SpecError(NatcError):
    """A kernel specification, or the name of one, that natc does not know or support."""


class TargetError(NatcError):
    """A target or architecture that natc does not know, or that this machine cannot serve."""


class ArgumentError(NatcError, ValueError):
    """An argument of an operator with a value, shape or device that is not allowed."""


class ArgumentTypeError(NatcError, TypeError):
    """An argument of an operator with a type or dtype that is not allowed."""


class RecordError(NatcError):
    """A tuning record that cannot be written or understood."""


class ScheduleError(NatcError):
    """A schedule file that is damaged, missing, or written by a newer natc."""


class LibraryError(NatcError):
    """A kernel library that cannot be trusted or loaded."""


class ModelError(NatcError):
    """The model of a GPU cannot predict a kernel: its machine code or its inputs are not known."""


class BuildError(NatcError):
    """A library that could not be built."""


class CompilerNotFound(BuildError):
    """This machine has no compiler for the requested target."""


class CheckError(NatcError):
    """A kernel whose results are wrong, or which wrote where it must not."""


class TuneError(NatcError):
    """A search that could not start or found nothing."""


class NotCoveredError(NatcError, RuntimeError):
    """No kernel covers a call, and `NATC_STRICT=1` forbids the slow reference."""


class CompatError(NatcError, ImportError):
    """`natc.compat` cannot serve an import: NATTEN is imported already, or a module is missing."""


class CheckpointError(NatcError):
    """A file of weights that cannot be read, or that belongs to another network."""


class DataError(NatcError):
    """A dataset, or an image in it, that cannot be used."""


class TrainingError(NatcError):
    """A training that cannot start or continue."""
