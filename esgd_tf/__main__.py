"""`python3 -m esgd_tf COMMAND ...`: what can be done with the runs of train.py."""

import sys

from esgd_tf.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
