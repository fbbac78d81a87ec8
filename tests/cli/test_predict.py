"""`predict` on image files, and the files it refuses."""

import json
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from esgd_tf import data
from esgd_tf.data.image_files import read_image
from esgd_tf.runs.checkpoints import load_model
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
@pytest.mark.slow
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
            opaque = np.full((*colour.shape[:2], 1), 255, np.uint8)
            return tf.io.encode_png(np.concatenate([colour, opaque], axis=-1)).numpy()
        return tf.io.encode_png(pixels).numpy()

    for pixels in (GREY, COLOUR):
        (tmp_path / "image").write_bytes(encoded(pixels))
        found = read_image(tmp_path / "image", pixels.shape)
        assert not found.resized
        np.testing.assert_array_equal(found.pixels, pixels.astype(np.float32))


def test_a_photograph_is_held_upright(tmp_path):
    """Each of the eight orientations of EXIF, of one picture that has no symmetry."""
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8] = 255  # the upper left quarter is white
    upright[:4, 8:, 0] = 255  # the upper right one red
    # What a camera writes that holds the picture so: the inverse of how it is to be turned.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.save(tmp_path / "a.png", exif=exif)
        found = read_image(tmp_path / "a.png", (8, 16, 3))
        np.testing.assert_array_equal(found.pixels, upright, str(orientation))
        assert not found.resized
        image.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
        found = read_image(tmp_path / "a.jpg", (8, 16, 3))
        np.testing.assert_allclose(found.pixels, upright, atol=3, err_msg=str(orientation))
        assert found.original == (8, 16)


def test_an_orientation_that_makes_no_sense_is_passed_over(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 77
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", COLOUR.shape).pixels, COLOUR)


@pytest.mark.parametrize("mode", ["P", "1", "L", "CMYK", "YCbCr", "16 grey", "16 colour"])
def test_every_kind_of_pixels_comes_out_right(tmp_path, mode):
    """Three flat colours, so that no compression changes them, as they are seen."""
    seen = np.zeros((24, 16, 3), np.uint8)
    seen[8:16], seen[16:] = (255, 0, 0), (255, 255, 255)
    name = tmp_path / "image"
    if mode == "16 colour":
        name.write_bytes(tf.io.encode_png(seen.astype(np.uint16) * 257).numpy())
    elif mode in ("16 grey", "L", "1"):
        seen[8:16] = 0 if mode == "1" else 76
        grey = seen[..., :1]
        if mode == "16 grey":
            name.write_bytes(tf.io.encode_png(grey.astype(np.uint16) * 257).numpy())
        else:
            Image.fromarray(grey[..., 0]).convert(mode).save(name, "PNG")
    elif mode == "P":
        Image.fromarray(seen).quantize(3).save(name, "GIF")
    elif mode == "CMYK":
        # Of ink, in percent: black is no light, and so is all of it.
        ink = np.zeros((24, 16, 4), np.uint8)
        ink[:8, :, 3], ink[8:16, :, 1:3] = 255, 255
        Image.frombytes("CMYK", (16, 24), ink.tobytes()).save(name, "JPEG", quality=100)
    else:
        Image.fromarray(seen).convert(mode).save(name, "JPEG", quality=100, subsampling=0)
    found = read_image(name, (24, 16, 3)).pixels
    np.testing.assert_allclose(found, seen, atol=3 if mode in ("CMYK", "YCbCr") else 0)


def png(samples, kind, depth, *chunks):
    """A PNG of rows of packed samples, so that kinds can be made that Pillow does not write."""
    height, width = samples.shape[:2]
    bits = np.unpackbits(samples.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=-1)
    rows = np.packbits(bits[..., 16 - depth :].reshape(height, -1), axis=1)
    header = np.array([width, height], ">u4").tobytes() + bytes([depth, kind, 0, 0, 0])
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    file = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")):
        file += len(content).to_bytes(4, "big") + name + content
        file += zlib.crc32(name + content).to_bytes(4, "big")
    return file


PALETTE = (b"PLTE", bytes([10, 20, 30, 200, 100, 50, 0, 0, 255]))
OPAQUE = (b"tRNS", b"\xff\xff\xff")


@pytest.mark.parametrize(
    ("samples", "kind", "depth", "chunks", "seen"),
    [
        # Of 16 bits the upper 8, without rounding: 0x00ff is black, and 0x12ff the grey 0x12.
        ([0x0000, 0x00FF, 0x12FF, 0x8000, 0xFFFF], 0, 16, (), [0, 0, 0x12, 0x80, 255]),
        ([[0x00FF, 0x8001, 0xFF00]], 2, 16, (), [[0, 0x80, 255]]),
        ([[0x12FF, 0xFFFF], [0x8000, 0xFFFF]], 4, 16, (), [0x12, 0x80]),
        ([[0x12FF, 0x8000, 0x00FF, 0xFFFF]], 6, 16, (), [[0x12, 0x80, 0]]),
        # Grey of less than 8 bits is stretched over 0 ... 255.
        ([0, 1], 0, 1, (), [0, 255]),
        ([0, 1, 2, 3], 0, 2, (), [0, 85, 170, 255]),
        ([0, 7, 15], 0, 4, (), [0, 119, 255]),
        ([[77, 255], [3, 255]], 4, 8, (), [77, 3]),
        ([0, 1, 2], 3, 2, (PALETTE,), [[10, 20, 30], [200, 100, 50], [0, 0, 255]]),
        ([2, 0], 3, 8, (PALETTE, OPAQUE), [[0, 0, 255], [10, 20, 30]]),
    ],
    ids=["16 grey", "16 colour", "16 grey alpha", "16 colour alpha", "1 bit", "2 bits", "4 bits",
         "grey alpha", "palette", "opaque palette"],
)  # fmt: skip
def test_known_pixels_of_every_kind_of_png(tmp_path, samples, kind, depth, chunks, seen):
    (tmp_path / "a.png").write_bytes(png(np.array([samples]), kind, depth, *chunks))
    seen = np.array([seen])
    colour = seen if seen.ndim == 3 else np.repeat(seen[..., np.newaxis], 3, axis=-1)
    found = read_image(tmp_path / "a.png", colour.shape)
    np.testing.assert_array_equal(found.pixels, colour)
    assert found.pixels.dtype == np.float32
    grey = read_image(tmp_path / "a.png", (*colour.shape[:2], 1)).pixels
    # ITU-R BT.601, which leaves grey as it is.
    np.testing.assert_array_equal(grey[..., 0], np.round(colour @ [0.299, 0.587, 0.114]))


@pytest.mark.parametrize("form", ["rgba", "grey", "palette", "colour key", "gif", "16 grey"])
def test_transparent_images_are_refused(tmp_path, form):
    """What lies under the transparent parts is seen by nobody; a network would see it."""
    name = tmp_path / "image"
    alpha = np.full((16, 16, 1), 255, np.uint8)
    alpha[0, 0] = 254
    if form == "rgba":
        name.write_bytes(tf.io.encode_png(np.concatenate([COLOUR, alpha], axis=-1)).numpy())
    elif form == "grey":
        name.write_bytes(tf.io.encode_png(np.concatenate([GREY, alpha], axis=-1)).numpy())
    elif form == "16 grey":
        pixels = GREY[..., 0].astype(np.uint16) * 257
        Image.fromarray(pixels).save(name, "PNG", transparency=514)
    elif form == "colour key":
        Image.fromarray(COLOUR).save(name, "PNG", transparency=tuple(map(int, COLOUR[3, 4])))
    else:
        kind = "GIF" if form == "gif" else "PNG"
        Image.fromarray(COLOUR).quantize(8).save(name, kind, transparency=0)
    with pytest.raises(data.DataError, match=r"is transparent in places.* a background") as error:
        read_image(name, (16, 16, 3))
    assert str(name) in str(error.value)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path):
    image = tf.io.encode_png(GREY).numpy()
    size = (60_000).to_bytes(4, "big")
    header = b"IHDR" + size + size + image[24:29]
    bomb = image[:12] + header + zlib.crc32(header).to_bytes(4, "big") + image[33:]
    (tmp_path / "a.png").write_bytes(bomb)
    with pytest.raises(data.DataError, match="far too large"):
        read_image(tmp_path / "a.png", GREY.shape)


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
