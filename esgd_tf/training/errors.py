"""Errors about the devices of a training. Imports nothing: no TensorFlow here."""

__all__ = ["ClusterError", "StrategyError"]


class ClusterError(Exception):
    """The description of a job is unusable; the message says what is wrong with it."""


class StrategyError(Exception):
    """A strategy is not available on this machine; the message says why and what to do."""
