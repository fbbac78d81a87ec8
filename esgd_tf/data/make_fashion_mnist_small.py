"""Write the embedded data set into tfrecords/.

    python3 -m esgd_tf.data.make_fashion_mnist_small --raw_dir /usr/share/datasets/fashion-mnist

takes about ten seconds. The folder named is that of Debian's package dataset-fashion-mnist; any
folder with the four published idx files will do. The same images give the same records, byte for
byte. Remove tfrecords/fashion_mnist_small/1.0.0 first: records that exist are not rebuilt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from esgd_tf.data import staging
from esgd_tf.data.archives import read_idx
from esgd_tf.data.catalog import ENTRIES, IdxFiles
from esgd_tf.data.errors import DataError
from esgd_tf.data.sources import DEFAULT_DATA_DIR, build, resolve
from esgd_tf.data.subset import SUBSETS, stratified

_NAME = "fashion_mnist_small"


def main() -> None:
    """Read the command line and write the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw_dir", required=True, type=Path, help="folder with the idx files")
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="where to write")
    arguments = parser.parse_args()
    entry, source = ENTRIES[_NAME], ENTRIES[SUBSETS[_NAME]]
    data_dir = resolve(arguments.data_dir)
    try:
        raw = stratified(read_idx(arguments.raw_dir, IdxFiles(), source), entry)
        with staging.exclusive(data_dir, _NAME):
            folder = build(raw, entry, data_dir)
    except DataError as error:
        sys.exit(str(error))
    size = sum(file.stat().st_size for file in folder.glob("*.tfrecord-*"))
    sys.stdout.write(
        f"{folder}: {entry.num_train} + {entry.num_test} images, {size / 1e6:.2f} MB\n"
    )


if __name__ == "__main__":
    main()
