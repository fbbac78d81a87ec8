"""`predict` on image files, and the files it refuses."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf import data
from esgd_tf.data.image_files import read_image
from esgd_tf.training.checkpoints import load_model
from tests.cli.helpers import SMALL, esgd_tf, interrupted_at, train


@pytest.fixture(scope="module")
def images():
    return data.load("fashion_mnist_small")


def test_the_images_of_the_data_set_get_the_probabilities_of_the_network(
    finished, images, tmp_path, capsys
):
    files = [tmp_path / f"{k}.png" for k in range(5)]
    for file, image in zip(files, images.test_images, strict=False):
        file.write_bytes(tf.io.encode_png(image).numpy())
    model = load_model(finished / "checkpoints" / "last.keras", compile=False)
    prepared = data.preprocessor("meanstd", images)(images.test_images[:5])
    expected = np.asarray(keras.ops.softmax(model(prepared)))

    assert esgd_tf("predict", finished, *files, "--json", "--top", 10) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["file"] for answer in answers] == list(map(str, files))
    for answer, p in zip(answers, expected, strict=True):
        assert answer["size"] == [28, 28]
        assert answer["resized"] is False
        top = answer["top"]
        assert [t["label"] for t in top] == list(np.argsort(-p))
        assert [t["name"] for t in top] == [images.label_names[t["label"]] for t in top]
        np.testing.assert_allclose([t["probability"] for t in top], -np.sort(-p), rtol=1e-4)

    assert esgd_tf("predict", finished, files[0], "--top", 2) == 0
    name, first, second = capsys.readouterr().out.splitlines()
    assert name == str(files[0])
    assert images.label_names[expected[0].argmax()] in first
    assert f"{100 * expected[0].max():.2f} %" in first
    assert float(second.split()[0]) <= float(first.split()[0])


@pytest.mark.parametrize(
    "corrupt", ["double+pixel_shuffle", pytest.param("pixel_shuffle", marks=pytest.mark.slow)]
)
def test_a_run_that_saw_shuffled_images_gets_the_files_shuffled(
    images, corrupt, tmp_path, monkeypatch, capsys
):
    interrupted_at(monkeypatch, 1)
    flags = ("--corrupt", corrupt, "--corruption_seed", 5)
    assert train(*SMALL, *flags, "--logdir", tmp_path, "-n", "run") == 130
    corruptions = data.parse_corruptions(corrupt)
    shown = images if corrupt == "pixel_shuffle" else data.corrupt_data(
        images, corruptions[:1], seed=5
    )  # fmt: skip
    (tmp_path / "0.png").write_bytes(tf.io.encode_png(shown.test_images[0]).numpy())
    prepared = data.corrupt_data(images, corruptions, seed=5)
    prepared = data.preprocessor("meanstd", prepared)(prepared.test_images[:1])
    model = load_model(tmp_path / "run" / "checkpoints" / "last.keras", compile=False)
    expected = np.asarray(keras.ops.softmax(model(prepared)))[0]
    capsys.readouterr()
    flags = ("--json", "--top", 10, "--bn_reestimate", 0)
    assert esgd_tf("predict", tmp_path / "run", tmp_path / "0.png", *flags) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    found = {t["label"]: t["probability"] for t in answer["top"]}
    np.testing.assert_allclose([found[k] for k in range(10)], expected, rtol=1e-4)
    assert ("sum" in answer["top"][0]["name"]) == ("double" in corrupt)
    assert esgd_tf("export", tmp_path / "run", tmp_path / "net", "--format", "keras") == 0
    said = f"changed as in training, by --corrupt {corrupt} --corruption_seed 5"
    assert said in capsys.readouterr().out


def test_a_colour_photograph_is_converted_and_resized_and_says_so(finished, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    (tmp_path / "photo.jpg").write_bytes(tf.io.encode_jpeg(pixels).numpy())
    assert esgd_tf("predict", finished, tmp_path / "photo.jpg") == 0
    assert "resized from 60x40 to 28x28" in capsys.readouterr().out


def bmp(pixels):
    """A 24-bit Windows bitmap: rows from below, blue first, padded to four bytes."""
    height, width, _ = pixels.shape
    row = (3 * width + 3) // 4 * 4
    body = b"".join(
        pixels[y, :, ::-1].tobytes().ljust(row, b"\0") for y in range(height - 1, -1, -1)
    )
    header = b"BM" + np.array([54 + len(body), 0, 54, 40, width, height], "<u4").tobytes()
    header += np.array([1, 24], "<u2").tobytes()
    return header + np.array([0, len(body), 0, 0, 0, 0], "<u4").tobytes() + body


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
COLOUR = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize("form", ["png", "bmp", "rgba"])
def test_files_of_the_right_size_keep_every_bit(tmp_path, form):
    def encoded(pixels):
        colour = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
        if form == "bmp":
            return bmp(colour)
        if form == "rgba":
            half = np.full((*colour.shape[:2], 1), 128, np.uint8)
            return tf.io.encode_png(np.concatenate([colour, half], axis=-1)).numpy()
        return tf.io.encode_png(pixels).numpy()

    for pixels in (GREY, COLOUR):
        (tmp_path / "image").write_bytes(encoded(pixels))
        found = read_image(tmp_path / "image", pixels.shape)
        assert not found.resized
        np.testing.assert_array_equal(found.pixels, pixels.astype(np.float32))


def test_colour_to_grey_and_back(tmp_path):
    (tmp_path / "red.png").write_bytes(
        tf.io.encode_png(np.full((4, 4, 1), 1, np.uint8) * np.array([200, 0, 0], np.uint8)).numpy()
    )
    np.testing.assert_array_equal(read_image(tmp_path / "red.png", (4, 4, 1)).pixels, 60.0)
    (tmp_path / "grey.png").write_bytes(tf.io.encode_png(GREY).numpy())
    found = read_image(tmp_path / "grey.png", (16, 16, 3)).pixels
    np.testing.assert_array_equal(found, np.repeat(GREY, 3, axis=-1).astype(np.float32))


def test_resizing_averages(tmp_path):
    """A fine checkerboard shrinks to its mean: without antialiasing it would be black or white."""
    board = (255 * (np.indices((63, 63)).sum(axis=0) % 2)).astype(np.uint8)[..., np.newaxis]
    (tmp_path / "board.png").write_bytes(tf.io.encode_png(board).numpy())
    found = read_image(tmp_path / "board.png", (7, 7, 1))
    assert found.resized
    assert found.original == (63, 63)
    np.testing.assert_allclose(found.pixels[1:-1, 1:-1], 127.5, atol=2.0)


def test_the_first_frame_of_a_gif(tmp_path):
    gif = bytes.fromhex(  # 1x1, red, then green
        "474946383961010001009100000000ffff000000ff00ffffff"
        "2c00000000010001000002024c0100"
        "2c000000000100010000020254010000"
        "3b"
    )
    (tmp_path / "a.gif").write_bytes(gif)
    found = read_image(tmp_path / "a.gif", (1, 1, 3))
    np.testing.assert_array_equal(found.pixels, [[[255, 0, 0]]])


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", tf.io.encode_png(COLOUR).numpy()[:400]]
)
def test_a_file_that_is_no_image(finished, tmp_path, capsys, content):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(tf.io.encode_png(GREY).numpy())
    bad.write_bytes(content)
    assert esgd_tf("predict", finished, good, bad) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{bad} is no image" in captured.err
    assert captured.err.count("\n") == 1


def test_a_folder_and_a_missing_file(finished, tmp_path, capsys):
    assert esgd_tf("predict", finished, tmp_path) == 1
    assert "is a folder" in capsys.readouterr().err
    assert esgd_tf("predict", finished, tmp_path / "none.png") == 1
    assert "There is no file" in capsys.readouterr().err


def test_bad_flags(capsys):
    assert esgd_tf("predict", "RUN") == 2
    assert "give RUN IMAGE..." in capsys.readouterr().err
    assert esgd_tf("predict", "RUN", "a.png", "--top", "0") == 2
    assert "--top=0" in capsys.readouterr().err
