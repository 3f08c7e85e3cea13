"""One exception per failure that a caller can act on.

Every class also derives from the built-in that a NumPy user would expect (``ValueError``, ``TypeError``, ...), so that
``except ValueError`` keeps working. Messages say what, where, what was expected and what was got.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "ArtifactVersionError",
    "CalibrationError",
    "CalibrationWarning",
    "CheckpointError",
    "DTypeError",
    "ExecutionError",
    "FormatError",
    "Fp8npError",
    "GraphError",
    "InputError",
    "MissingDependencyError",
    "PolicyError",
    "RecipeError",
    "ScaleError",
    "ShapeError",
    "StudyError",
    "TuningError",
    "UnsafeCheckpointError",
    "UnsupportedOperatorError",
]


class Fp8npError(Exception):
    """Base class of every error that fp8np raises on purpose."""


class FormatError(Fp8npError, ValueError):
    """A number format is unknown, or cannot do what was asked of it."""


class PolicyError(Fp8npError, ValueError):
    """An overflow, rounding or NaN policy, or a preset, is unknown or does not apply to the format."""


class ShapeError(Fp8npError, ValueError):
    """Array shapes do not fit together, or do not fit the declaration of a value."""


class DTypeError(Fp8npError, TypeError):
    """An array has an element type that the operation does not take."""


class ScaleError(Fp8npError, ValueError):
    """A scale is not finite and positive, or its shape cannot be applied to the tensor."""


class GraphError(Fp8npError, ValueError):
    """A graph breaks an invariant: a cycle, an unknown op, a wrong shape, a missing constant, ..."""


class InputError(Fp8npError, ValueError):
    """An input given to `run` is missing, unknown, or has a wrong shape or type."""


class ExecutionError(Fp8npError, RuntimeError):
    """A node failed while it ran; the message names the node and its origin in the user's code."""


class ArtifactError(Fp8npError, ValueError):
    """A converted-model file is damaged, inconsistent, or not one of ours."""


class ArtifactVersionError(ArtifactError):
    """A converted-model file was written by a newer fp8np than this one."""


class CheckpointError(Fp8npError, ValueError):
    """A checkpoint is damaged, truncated, or of a kind that is not understood."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks to import something other than tensors and plain containers; nothing was executed."""


class UnsupportedOperatorError(Fp8npError, NotImplementedError):
    """A model uses operators that fp8np lacks; the message lists all of them."""


class CalibrationError(Fp8npError, ValueError):
    """Calibration data are missing, empty, or hold NaN or infinity."""


class CalibrationWarning(UserWarning):
    """Calibration found something about the data that a user should look at; the model is made all the same."""


class RecipeError(Fp8npError, ValueError):
    """A quantization recipe is unknown, malformed, or does not fit the model."""


class StudyError(Fp8npError, ValueError):
    """The file of a study is malformed; the message names the line."""


class TuningError(Fp8npError, ValueError):
    """Tuning cannot go on: FP32 leaves nothing to lose a part of, or the log is damaged or of something else."""


class MissingDependencyError(Fp8npError, ImportError):
    """An optional package is needed for this; the message names the extra to install."""
