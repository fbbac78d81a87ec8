#!/usr/bin/env python3
"""Train a Keras model with Entropy-SGD: `python3 train.py --help`."""

import sys

import config
from esgd_tf.cli.train import main

if __name__ == "__main__":
    sys.exit(main(config.PRESETS))
