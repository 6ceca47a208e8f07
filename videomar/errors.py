"""The two kinds of failure: what the user can mend, and what only we can. Knows nothing else."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend; shown as one line, exit code 2, no traceback.

    The message says what, what was got, what was expected and what to do.
    """


class ConfigError(UserError):
    """A configuration value is missing, unknown or out of range."""


class ArtifactError(UserError):
    """A file or directory is missing, altered, truncated or of another version."""


class InputError(UserError):
    """A picture, clip, prompt or option that cannot be used."""


class ParityError(UserError):
    """A graph's numbers differ from the reference by more than the contract allows."""


class DeviceError(UserError):
    """A GPU, its driver or its libraries are missing, too small, of another version, or failed."""


class BuildError(UserError):
    """TensorRT cannot build an engine, or the written one does not verify."""
