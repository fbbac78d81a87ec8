"""Names, patterns and the checks of arguments."""

import subprocess
import sys

import keras
import pytest

from esgd_tf import models
from esgd_tf.models import registry


@pytest.fixture
def own_registry(monkeypatch):
    """A copy of the registry, so that what a test registers is gone afterwards."""
    models.names()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def _tiny(input_shape, num_classes, *, dropout, seed, **fields):
    inputs = keras.Input(input_shape)
    logits = keras.layers.Dense(num_classes)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, logits)
    model.received = {"dropout": dropout, "seed": seed, **fields}
    return model


def test_names():
    assert models.names() == (
        "allcnn",
        "lenet-10-20-128",
        "mnistconv",
        "mnistfc",
        "nn-100-2",
        "wrn-16-4",
        "wrn-28-10",
    )


def test_names_and_checks_do_not_load_tensorflow():
    code = (
        "import sys\n"
        "from esgd_tf import models\n"
        "assert 'mnistconv' in models.names()\n"
        "models.check_name('wrn-40-2')\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules), 'TensorFlow was loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_package_attributes():
    assert set(dir(models)) >= {"build", "names", "check_name", "register", "BatchNormalization"}
    with pytest.raises(AttributeError, match="nothing"):
        _ = models.nothing


@pytest.mark.parametrize("name", ["mnistfc", "mnistconv", "allcnn", "wrn-10-1", "wrn-28-10"])
def test_check_name_accepts(name):
    models.check_name(name)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("lenet-2-0-4", "has a layer without units"),
        ("nn-0-2", "nn-0-2 has no hidden units"),
        ("nn-5-0", "nn-5-0 has no hidden units"),
        ("lenet", "Unknown model 'lenet': choose one of allcnn, .*wrn-<depth>-<width>"),
        ("mnistfc2", "Unknown model"),
        ("MNISTFC", "Unknown model"),
        ("wrn-28", "Unknown model"),
        ("wrn-28-10-2", "Unknown model"),
        ("wrn--28-10", "Unknown model"),
        ("", "Unknown model"),
        ("wrn-27-10", r"D = 6n \+ 4 .* D is 27"),
        ("wrn-4-10", r"D = 6n \+ 4 .* D is 4"),
        ("wrn-28-0", "K of at least 1, but K is 0"),
    ],
)
def test_check_name_refuses(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.check_name(name)
    with pytest.raises(ValueError, match=sentence):
        models.build(name, (32, 32, 3), 10)


def test_register_a_name(own_registry):
    assert models.register("tiny")(_tiny) is _tiny
    assert "tiny" in models.names()
    model = models.build("tiny", (4, 4, 1), 3, dropout=0.25, seed=7)
    assert model.output_shape == (None, 3)
    assert model.received == {"dropout": 0.25, "seed": 7}


def test_register_a_pattern(own_registry):
    models.register("tiny.{depth}x{width}", examples=("tiny.2x3",))(_tiny)
    assert "tiny.2x3" in models.names()
    assert models.build("tiny.12x3", (4, 4, 1), 3).received == {
        "dropout": None,
        "seed": None,
        "depth": 12,
        "width": 3,
    }
    # The dot of the pattern is a dot.
    with pytest.raises(ValueError, match="Unknown model"):
        models.check_name("tiny_2x3")


def test_a_name_comes_before_a_pattern(own_registry):
    models.register("wrn-16-4")(_tiny)
    assert models.build("wrn-16-4", (8, 8, 3), 3).received == {"dropout": None, "seed": None}


def test_register_refuses_a_taken_name(own_registry):
    with pytest.raises(ValueError, match=r"'mnistfc' is taken by esgd_tf\.models\.mnistfc"):
        models.register("mnistfc")(_tiny)


def test_register_again_replaces(own_registry):
    models.register("tiny")(_tiny)
    models.register("tiny")(_tiny)
    assert models.names().count("tiny") == 1


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"input_shape": (28, 28)}, "`input_shape` must be"),
        ({"input_shape": (28, 28, 0)}, "`input_shape` must be"),
        ({"input_shape": (28, 28, None)}, "`input_shape` must be"),
        ({"input_shape": (28.0, 28, 1)}, "`input_shape` must be"),
        ({"num_classes": 0}, "`num_classes` must be"),
        ({"num_classes": 2.5}, "`num_classes` must be"),
        ({"dropout": 1.0}, "`dropout` must be"),
        ({"dropout": -0.1}, "`dropout` must be"),
        ({"dropout": float("nan")}, "`dropout` must be"),
    ],
    ids=str,
)
def test_build_refuses(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.build("mnistfc", **{"input_shape": (28, 28, 1), "num_classes": 10, **arguments})


@pytest.mark.parametrize(
    "name, too_small, smallest",
    [
        ("mnistconv", (21, 28, 1), (22, 22, 1)),
        ("lenet-2-3-4", (15, 28, 1), (16, 16, 1)),
        ("allcnn", (32, 7, 3), (8, 8, 3)),
        ("wrn-10-1", (7, 7, 3), (8, 8, 3)),
    ],
)
def test_too_small_images(name, too_small, smallest):
    height, width, _ = too_small
    with pytest.raises(ValueError, match=f"{name} needs images of at least .*{height}x{width}"):
        models.build(name, too_small, 10)
    assert models.build(name, smallest, 10).output_shape == (None, 10)
