"""Errors about a run. Imports nothing, so that commands catch them without TensorFlow."""

__all__ = ["CheckpointError", "DamagedCheckpointError", "NotFiniteError", "RunFolderError"]


class RunFolderError(Exception):
    """A run folder cannot be used; the message says why and what to do."""


class CheckpointError(Exception):
    """A checkpoint cannot be loaded; the message says why and what to do."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written, or not there; another one may be."""


class NotFiniteError(Exception):
    """A gradient, the training loss or the loss on the test set is NaN or infinite."""
