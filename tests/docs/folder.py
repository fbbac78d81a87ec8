"""A copy of the repository in which the documents' commands run, with what they take for granted.

The data sets that are not in the repository are a few images each, in their true formats: the
catalog that says how many images a set has is changed to fit, in every process, and nothing else.
"""

import contextlib
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import venv

import numpy as np

from esgd_tf import data
from esgd_tf.data import catalog
from tests.docs.blocks import ROOT

sys.path.append(str(ROOT / "tests" / "data"))
import archive_maker

# A minute or two on two cores; CI may have slower ones, and other work.
TIMEOUT = 2400.0
COUNTS = {
    "mnist": ((101, 99, *(100,) * 8), (20,) * 10),
    "cifar10": ((5,) * 10, (2,) * 10),
    "cifar100": ((1,) * 100, (1,) * 100),
}
# Runs in every Python of the environment before anything else.
CUSTOMIZE = f"""
import dataclasses
import importlib.machinery
import sys

COUNTS = {COUNTS!r}


class Smaller:
    def find_spec(self, name, path=None, target=None):
        if name != "esgd_tf.data.catalog":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def smaller(module):
            execute(module)
            for name, (train, test) in COUNTS.items():
                entry = module.ENTRIES[name]
                module.ENTRIES[name] = dataclasses.replace(
                    entry, train_counts=train, test_counts=test, probe_url=None
                )

        spec.loader.exec_module = smaller
        return spec


sys.meta_path.insert(0, Smaller())
"""
# A block of Python, with the names of the prelude, each made when it is first used.
PYTHON = """
import tests.docs.prelude as prelude


class Names(dict):
    def __missing__(self, name):
        if not hasattr(prelude, name):
            raise KeyError(name)
        return self.setdefault(name, getattr(prelude, name))


exec(compile({content!r}, {name!r}, "exec"), Names(__name__="__main__"))
"""


def environment(path):
    """Make an environment that has the packages of this one, but for esgd_tf.

    Returns:
        The variables of a process in it.
    """
    venv.create(path, symlinks=True)
    (packages,) = path.glob("lib/python*/site-packages")
    (packages / "of_the_tests.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    (packages / "sitecustomize.py").write_text(CUSTOMIZE)
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    variables |= {"VIRTUAL_ENV": str(path), "CUDA_VISIBLE_DEVICES": "-1"}
    variables["PATH"] = f"{path / 'bin'}{os.pathsep}{variables['PATH']}"
    return {k: v for k, v in variables.items() if not k.startswith("PYTEST_XDIST")}


def material(path):
    """Make what the documents speak of: archives, prepared records, two pictures."""
    smaller = archive_maker.tiny_entries()
    for name, (train, test) in COUNTS.items():
        entry = smaller[name]
        object.__setattr__(entry, "train_counts", train)
        object.__setattr__(entry, "test_counts", test)
    archive_maker.write_idx(path / "raw" / "mnist", archive_maker.images_of(smaller["mnist"]))
    for name in ("cifar10", "cifar100"):
        entry = smaller[name]
        archive = next(a for a in entry.archives if getattr(a, "pickled", False))
        members = archive_maker.cifar_members(entry, archive, archive_maker.images_of(entry))
        archive_maker.write_tar(path / "raw" / archive.file, members)
    before = dict(catalog.ENTRIES)
    try:
        catalog.ENTRIES.update({name: smaller[name] for name in COUNTS})
        for name in COUNTS:
            data.load(name, data_dir=str(path / "records"), raw_dir=str(path / "raw"))
    finally:
        catalog.ENTRIES.update(before)
    _pictures(path)


def _pictures(path):
    from PIL import Image

    small = data.load("fashion_mnist_small", data_dir=str(ROOT / "tfrecords"))
    bag, sneaker = (Image.fromarray(np.asarray(small.test_images[i])[..., 0]) for i in (1, 8))
    bag.save(path / "bag.png")
    sneaker.resize((320, 240)).save(path / "sneaker.jpg")


def copy(path, made, chain):
    """Copy what git knows of the repository, and the material, to where a chain of blocks runs."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # else it was deleted and git has not heard of it
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, path / name)
    for picture in ("bag.png", "sneaker.jpg"):
        shutil.copyfile(made / picture, path / picture)
    (path / "home").mkdir()
    (path / "home" / "raw").symlink_to(made / "raw")
    (path / "DIR").symlink_to(made / "raw")
    # What is to be built from archives must not be there.
    if not any("~/raw" in block.content for block in chain):
        shutil.copytree(made / "records", path / "tfrecords", dirs_exist_ok=True)


def run(block, path, variables):
    """Run a block and return what it printed.

    Raises:
        AssertionError: It failed; the message is what it printed.
    """
    variables = variables | {"HOME": str(path / "home")}
    for mark in block.of("env"):
        name, _, value = mark.rest.partition("=")
        variables[name] = value
    if block.kind == "shell":
        command = ["bash", "-e", "-o", "pipefail", "-c", block.script]
    else:
        script = path / f"block_{block.line}.py"
        script.write_text(PYTHON.format(content=block.content, name=str(block)))
        command = ["python3", str(script)]
        if block.of("workers"):
            command = ["python3", "-m", "esgd_tf", "launch", "--workers", "2", "--", str(script)]
    with contextlib.suppress(FileNotFoundError):
        (path / "served.log").unlink()
    with subprocess.Popen(
        command,
        cwd=path,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            printed, _ = process.communicate()
            raise AssertionError(f"{block} took more than {TIMEOUT:.0f} s:\n{printed}") from None
    assert process.returncode == 0, f"{block} ended with {process.returncode}:\n{printed}"
    return printed


def words(text):
    """The words of a text, without numbers, whose values vary."""
    return set(re.findall(r"[A-Za-z]{3,}", text))


def looks_like(block, printed):
    """Whether a block of output is what the block before it prints: three words of four are.

    Some of them, such as predicted classes, are as variable as numbers.

    Returns:
        Whether it is, and the words that are not printed.
    """
    expected = words(block.content)
    return len(expected & words(printed)) > 0.75 * len(expected), expected - words(printed)
