"""Errors about a run. This module imports nothing, so that commands need no TensorFlow."""

__all__ = ["CheckpointError", "DamagedCheckpointError", "NotFiniteError", "RunFolderError"]


class RunFolderError(Exception):
    """A run folder cannot be used; the message says why and what to do."""


class CheckpointError(Exception):
    """A checkpoint cannot be loaded; the message says why and what to do."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is damaged or missing; another one may be whole."""


class NotFiniteError(Exception):
    """A gradient, the training loss or the loss on the test set is NaN or infinite."""
