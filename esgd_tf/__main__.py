"""`python3 -m esgd_tf COMMAND ...`: what can be done with the runs of train.py."""

import sys

from esgd_tf.cli.door import enter


def _main() -> int:
    from esgd_tf.cli.commands import main  # noqa: PLC0415 - behind the door

    return main()


if __name__ == "__main__":
    sys.exit(enter("esgd_tf", _main))
