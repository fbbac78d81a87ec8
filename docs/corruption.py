"""Plot docs/corruption.png: what each corruption makes of six training images.

    python3 docs/corruption.py

takes about ten seconds, and needs nothing but the embedded data set. A label is red where it is
not, or no longer, that of the image; inputs are shown as the network sees them under "meanstd",
from -2 (black) to 2 (white) standard deviations.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

# So that the script runs from a checkout as it is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esgd_tf import data

_ROWS = (
    ("none", "as it is"),
    ("double", "training and test"),
    ("scrambled", "training"),
    ("label_noise:0.5", "training"),
    ("all_noise", "training"),
    ("some_noise:7", "training"),
    ("gaussian:1", "training"),
    ("pixel_shuffle", "training and test"),
    ("random_pixels", "training"),
)
_SEED = 7
# Short for `label_names`, so that they fit.
_SHORT = {"T-shirt/top": "T-shirt", "Ankle boot": "Boot"}


def main() -> None:
    """Plot and write the picture."""
    images = data.load("fashion_mnist_small")
    # The first images of six classes that look least alike.
    shown = np.array([np.flatnonzero(images.train_labels == k)[0] for k in (0, 1, 3, 5, 8, 9)])
    figure = Figure(figsize=(12, 16.5))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(_ROWS),
        len(shown) + 1,
        width_ratios=[1.75, *[1.0] * len(shown)],
        left=0.01,
        right=0.99,
        bottom=0.01,
        top=0.97,
        hspace=0.28,
        wspace=0.06,
    )
    for row, (text, scope) in enumerate(_ROWS):
        axes = figure.add_subplot(grid[row, 0])
        axes.axis("off")
        axes.text(0, 0.62, text, fontsize=21, fontweight="bold", va="center")
        axes.text(0, 0.36, scope, fontsize=18, color="0.35", va="center")
        pictures, titles, wrong = _examples(images, text, shown)
        for column, picture in enumerate(pictures):
            axes = figure.add_subplot(grid[row, column + 1])
            axes.imshow(picture, cmap="gray", vmin=-2, vmax=2)
            axes.axis("off")
            color = "tab:red" if wrong[column] else "black"
            axes.set_title(titles[column], fontsize=18, color=color, pad=4)
    path = Path(__file__).with_suffix(".png")
    figure.savefig(path, dpi=72, metadata={"Software": None})
    sys.stdout.write(f"{path}\n")


def _examples(
    images: data.ImageData, text: str, shown: NDArray[Any]
) -> tuple[NDArray[Any], list[str], NDArray[Any]]:
    """Return the inputs of some training images, their titles, and which labels are wrong."""
    corruptions = data.parse_corruptions(text)
    made = data.corrupt_data(images, corruptions, seed=_SEED)
    inputs = data.preprocessor("meanstd", made)(made.train_images[shown])
    corrupt = data.input_corruption(corruptions, seed=_SEED)
    if corrupt is not None:
        inputs = corrupt(inputs, shown)
    labels, clean = made.train_labels[shown], images.train_labels[shown]
    if text == "double":
        second = (labels - clean) % images.num_classes
        titles = [f"{a} + {b} → {c}" for a, b, c in zip(clean, second, labels, strict=True)]
        return inputs.numpy()[..., 0], titles, np.zeros(len(shown), bool)
    names = [images.label_names[k] for k in labels]
    return inputs.numpy()[..., 0], [_SHORT.get(n, n) for n in names], labels != clean


if __name__ == "__main__":
    main()
