"""The results of `landscape` as rows of numbers, long and tidy, for landscape.csv."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

__all__ = ["ROWS"]

# (split, metric, at, value, standard error)
Row = tuple[Any, ...]


def _spectrum(results: Any) -> Iterator[Row]:
    for end, pairs in results.items():
        ranked = enumerate(zip(pairs.eigenvalues, pairs.residuals, strict=True), start=1)
        for rank, (value, residual) in ranked:
            if math.isnan(value):  # not found within the limit of products
                continue
            yield "", f"{end} eigenvalue", rank, value, residual


def _density(result: Any) -> Iterator[Row]:
    for node, weight in zip(result.nodes, result.weights, strict=True):
        yield "", "density weight", node, weight, ""


def _local_energy(result: Any) -> Iterator[Row]:
    for split, by_metric in result.increase.items():
        for metric in by_metric:
            value, error = result.curve(split, metric)
            for row in zip(result.sigmas, value, error, strict=True):
                yield split, metric, *row


def _sharpness(results: Any) -> Iterator[Row]:
    for kind, found in results.items():
        yield "", kind, found.radius, found.value, ""


def _local_entropy(results: Any) -> Iterator[Row]:
    for method, found in results.items():
        for row in zip(found.gammas, found.values, found.standard_errors, strict=True):
            yield "", method, *row


def _interpolate(result: Any) -> Iterator[Row]:
    for split, by_metric in result.values.items():
        for metric, values in by_metric.items():
            for at, value in zip(result.coefficients, values, strict=True):
                yield split, metric, at, value, ""


def _plane(result: Any) -> Iterator[Row]:
    x, y = result.grids
    for split, by_metric in result.values.items():
        for metric, values in by_metric.items():
            for i, line in enumerate(values):
                for j, value in enumerate(line):
                    yield split, metric, f"{x[i]:g} {y[j]:g}", value, ""


def _random_walk(result: Any) -> Iterator[Row]:
    for number, losses in enumerate(result.losses):
        for step, value in enumerate(losses):
            if math.isfinite(value):
                yield "", f"walk {number}", step, value, ""


ROWS = {
    "spectrum": _spectrum,
    "density": _density,
    "local_energy": _local_energy,
    "sharpness": _sharpness,
    "local_entropy": _local_entropy,
    "interpolate": _interpolate,
    "plane": _plane,
    "random_walk": _random_walk,
}
