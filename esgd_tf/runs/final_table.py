"""The table that a training run ends with, and the files it has written."""

from __future__ import annotations

import math

from esgd_tf.runs.run_folder import RunFolder

__all__ = ["final_table"]


def final_table(rows: list[dict[str, float]], folder: RunFolder, test_images: int) -> str:
    """Return the table as lines of text.

    Args:
        rows: list of dicts of floats by name. The rows of history.csv; the last one holds the
            final results.
        folder: RunFolder. The folder of the run, whose existing files are listed.
        test_images: int >= 1. The number of images for the accuracy.
    """
    last = rows[-1]
    where = "center" if "coupling" in last else "anchor"
    best = max(rows, key=lambda row: row.get("val_accuracy", -math.inf))
    lines = [
        (f"test accuracy, at the {where}", f"{100 * last['val_accuracy']:.2f} %"),
        ("test error", f"{100 * (1 - last['val_accuracy']):.2f} %"),
        ("test loss", f"{last['val_loss']:.4f}"),
        ("test images", f"{test_images:,}"),
        ("best test accuracy", f"{100 * best['val_accuracy']:.2f} % (epoch {best['epoch']:g})"),
        ("epochs" if "coupling" in last else "effective epochs", f"{last['epoch']:g}"),
        ("gradient evaluations", f"{last['gradient_evaluations']:,.0f}"),
        ("outer updates", f"{last['outer_updates']:,.0f}"),
    ]
    if "scope" in last:
        lines.append(("scope", f"{last['scope']:.3g}"))
    if "coupling" in last:
        lines.append(("coupling", f"{last['coupling']:.3g}"))
        lines.append(("distance to the center, rms", f"{last['distance']:.3g}"))
    if "test_ensemble_accuracy" in last:
        ensemble = f"{100 * last['test_ensemble_accuracy']:.2f} %"
        lines.append(("accuracy of the ensemble, on --monitor images", ensemble))
    lines.append(("training time", f"{last['seconds']:.0f} s"))
    if last.get("skipped"):
        lines.append(("minibatches skipped, not finite", f"{last['skipped']:,.0f}"))
    width = max(len(name) for name, _ in lines)
    files = [folder.config, folder.history, folder.curves, folder.last, folder.best]
    table = [f"  {name:<{width}}  {value}" for name, value in lines]
    written = [f"  {file}" for file in [*files, folder.tensorboard] if file.exists()]
    return "\n".join(["", *table, "", "written:", *written])
