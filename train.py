#!/usr/bin/env python3
"""Train a Keras model with Entropy-SGD: `python3 train.py --help`."""

import sys

from esgd_tf.cli.door import enter


def _main() -> int:
    import config
    from esgd_tf.cli.train import main

    return main(config.PRESETS)


if __name__ == "__main__":
    sys.exit(enter("train.py", _main))
