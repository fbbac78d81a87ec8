"""The version, alone here so that packaging and `--help` read it without TensorFlow."""

__version__ = "0.1.0"
