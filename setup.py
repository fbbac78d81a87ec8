"""What setup.cfg cannot say: the wheel carries the presets and the embedded data set.

In the repository both stay at the top level, where users look for them; in a wheel they lie inside
the package.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# From the repository's root into the package.
CARRIED = {
    "config.py": "esgd_tf/_presets.py",
    "tfrecords/fashion_mnist_small": "esgd_tf/_tfrecords/fashion_mnist_small",
}


class BuildPy(build_py):
    """Build the package, and put in what lies beside it in the repository."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return  # it runs from the repository, where all of it is
        for source, place in CARRIED.items():
            target = Path(self.build_lib, place)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(ROOT / source, target)


setup(cmdclass={"build_py": BuildPy})
