import subprocess
import sys

import pytest

from esgd_tf.data import CORRUPTIONS, Corruption, DataError, parse_corruptions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", ()),
        ("double", (Corruption("double"),)),
        ("label_noise:0.2", (Corruption("label_noise", 0.2),)),
        ("some_noise", (Corruption("some_noise", 7),)),
        ("some_noise:3", (Corruption("some_noise", 3),)),
        ("gaussian:1e-3", (Corruption("gaussian", 0.001),)),
        (
            "double + scrambled+gaussian:0.5",
            (Corruption("double"), Corruption("scrambled"), Corruption("gaussian", 0.5)),
        ),
        # Labels do not mind whether noise on inputs comes first.
        ("all_noise+scrambled", (Corruption("all_noise"), Corruption("scrambled"))),
    ],
)
def test_reading(text, expected):
    assert parse_corruptions(text) == expected
    if expected:
        assert parse_corruptions("+".join(map(str, expected))) == expected


def test_writing():
    assert str(Corruption("some_noise", 7.0)) == "some_noise:7"
    assert str(Corruption("gaussian", 0.1)) == "gaussian:0.1"
    assert str(Corruption("label_noise")) == "label_noise:0"
    assert str(Corruption("double")) == "double"
    huge = Corruption("gaussian", 1e20)
    assert parse_corruptions(str(huge)) == (huge,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"no corruption ''; choose none, or .* of double, scrambled, label_noise, all_noise"),
        ("salt", "no corruption 'salt'"),
        ("none+double", "no corruption 'none'"),
        ("double+", "no corruption ''"),
        ("double:2", "double takes no number, and has '2'"),
        ("scrambled:", "scrambled takes no number"),
        ("label_noise", "label_noise needs its rate, as in label_noise:0.2"),
        ("gaussian", "gaussian needs its standard deviation"),
        ("label_noise:1.5", "rate of label_noise must be from 0 to 1, not 1.5"),
        ("label_noise:-0.1", "must be from 0 to 1, not -0.1"),
        ("label_noise:nan", "must be from 0 to 1, not nan"),
        ("label_noise:x", "must be from 0 to 1, not 'x'"),
        ("label_noise:", "must be from 0 to 1, not ''"),
        ("some_noise:2.5", "rows and columns of some_noise must be a whole number, 0 or more"),
        ("some_noise:-1", "must be a whole number"),
        ("some_noise:inf", "must be a whole number"),
        ("gaussian:inf", "deviation of gaussian must be a finite number"),
        ("gaussian:-1", "must be a finite number, 0 or more, not -1"),
        ("gaussian:1+scrambled+gaussian:2", "gaussian stands there twice"),
        ("gaussian:1+double", "double acts before preprocessing and gaussian after it: write dou"),
        ("some_noise:1+scrambled+pixel_shuffle", "pixel_shuffle acts before .* and some_noise"),
        ("all_noise+random_pixels", "random_pixels acts before"),
    ],
)
def test_texts_that_make_no_sense(text, says):
    with pytest.raises(DataError, match=says) as error:
        parse_corruptions(text)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_corruptions_made_by_hand_are_checked_too():
    with pytest.raises(DataError, match="no corruption 'salt'"):
        Corruption("salt")
    with pytest.raises(DataError, match="all_noise takes no number"):
        Corruption("all_noise", 1)
    with pytest.raises(DataError, match="from 0 to 1"):
        Corruption("label_noise", 2)


def test_every_kind_can_be_read():
    for kind in CORRUPTIONS:
        number = ":0.5" if kind in ("label_noise", "gaussian") else ""
        assert parse_corruptions(kind + number)[0].kind == kind


def test_reading_needs_no_tensorflow():
    code = (
        "import sys; from esgd_tf.data import CORRUPTIONS, parse_corruptions, corrupt_data;"
        "parse_corruptions('label_noise:0.2+gaussian:1'); sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
