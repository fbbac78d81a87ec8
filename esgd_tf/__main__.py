"""`esgd-tf COMMAND ...`, which is `python3 -m esgd_tf COMMAND ...` too."""

import sys

_NEEDS = ("absl", "filelock", "PIL", "matplotlib", "scipy", "tensorboard", "tensorflow",
          "tensorflow_datasets", "tqdm")  # fmt: skip


def _call() -> int:
    from esgd_tf.cli.commands import main  # noqa: PLC0415 - behind the door

    return main()


def main() -> int:
    """Run the command of the command line, and return its exit status."""
    try:
        from esgd_tf._extras import MissingExtraError, require  # noqa: PLC0415

        try:
            require("The command line", "all", *_NEEDS)
            from esgd_tf.cli.door import enter  # noqa: PLC0415
        except MissingExtraError as error:
            print(f"esgd_tf: {error}", file=sys.stderr)
            return 1
        return enter("esgd_tf", _call)
    except KeyboardInterrupt:  # before the door was there
        print("esgd_tf: Stopped; nothing half-written is left.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
