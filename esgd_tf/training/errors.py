"""What can be wrong with a run. Imports nothing: commands catch it without TensorFlow."""

__all__ = ["CheckpointError", "RunFolderError"]


class RunFolderError(Exception):
    """A run folder cannot be used; the message says why and what to do."""


class CheckpointError(Exception):
    """A checkpoint cannot be loaded; the message says why and what to do."""
