"""What modelkit raises on purpose. All are ValueErrors: a name, a config or a file that makes no sense.

ModelkitError(ValueError)
├── UnknownNameError            no such model or part; lists the known ones
├── DuplicateNameError          a name was registered twice
├── ConfigError            a config holds a wrong key or value
├── TargetError            a training target that cannot be right
├── WeightsError           a weights file or record that does not fit, is damaged, or is not ours
├── StateError             bytes that are no state of a clip
└── WeightsUnavailableError     weights that exist elsewhere but cannot be had here
"""

from __future__ import annotations


class ModelkitError(ValueError):
    """Base of modelkit's errors; the message says what was wrong, where, and what to do."""


class UnknownNameError(ModelkitError):
    """Raised for a name that nothing is registered under; the message lists the known names."""


class DuplicateNameError(ModelkitError):
    """Raised when a name is registered twice; the second registration has no effect."""


class ConfigError(ModelkitError):
    """Raised when a config holds an unknown key or a value that makes no sense."""


class TargetError(ModelkitError):
    """Raised when a training target is malformed: degenerate boxes, labels out of range, lengths that disagree."""


class WeightsError(ModelkitError):
    """Raised when weights do not fit the model, are damaged, or the record is missing."""


class StateError(ModelkitError):
    """Raised when bytes that should hold what a clip's frames left are damaged or of another format."""


class WeightsUnavailableError(ModelkitError):
    """Raised when weights are published somewhere but cannot be fetched from here."""
