"""`python3 -m esgd_tf COMMAND ...`: what can be done with the runs of train.py."""

import sys


def _call() -> int:
    from esgd_tf.cli.commands import main  # noqa: PLC0415 - behind the door

    return main()


if __name__ == "__main__":
    try:
        from esgd_tf.cli.door import enter

        status = enter("esgd_tf", _call)
    except KeyboardInterrupt:  # before the door was there
        print("esgd_tf: Stopped; nothing half-written is left.", file=sys.stderr)
        status = 130
    sys.exit(status)
