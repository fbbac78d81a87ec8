#!/usr/bin/env python3
"""Train a Keras model with Entropy-SGD: `python3 train.py --help`."""

import sys

_STOPPED = "Stopped before the training began; nothing was written."


def _call() -> int:
    import config
    from esgd_tf.cli.train import main

    return main(config.PRESETS)


if __name__ == "__main__":
    try:
        from esgd_tf.cli.door import enter

        status = enter("train.py", _call, stopped=_STOPPED)
    except KeyboardInterrupt:  # before the door was there
        print(f"train.py: {_STOPPED}", file=sys.stderr)
        status = 130
    sys.exit(status)
