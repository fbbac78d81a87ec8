"""What ends a run whose numbers are not finite, and what does not."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from esgd_tf.runs.checkpoints import Progress
from esgd_tf.runs.diagnostics import Diagnostics
from esgd_tf.runs.errors import NotFiniteError
from esgd_tf.runs.nonfinite_guard import NotFiniteGuard
from esgd_tf.runs.recorder import Recorder
from esgd_tf.runs.run_folder import RunFolder
from esgd_tf.training import skip_nonfinite

STEPS = 150


def fit(folder, on_nan, *, bad=(), scale=2.0**15, epochs=1, test=1.0, steps=STEPS):
    """Train in mixed_float16 on batches of one number, some of which are not finite."""
    keras.config.set_dtype_policy("mixed_float16")
    x = np.ones((epochs * steps, 1, 1), "float32")
    x[list(bad)] = np.nan
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros_like(x)))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, dtype="mixed_float16")])
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.dynamic_scale.assign(scale)
    skip_nonfinite(model)
    recorder = Recorder(folder, steps, Progress())
    with folder:
        model.fit(
            data,
            epochs=epochs,
            steps_per_epoch=steps,
            verbose=0,
            validation_data=(np.full((1, 1), test), np.zeros((1, 1))),
            callbacks=[NotFiniteGuard(on_nan, recorder), Diagnostics(recorder), recorder],
        )
    return model, recorder.rows


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_halvings_of_a_loss_scale_that_is_too_large_are_no_reason_to_stop(folder):
    model, (row,) = fit(folder, "stop", scale=2.0**40)
    assert 0 < row["skipped"] < 40
    assert row["gradient_evaluations"] == STEPS - row["skipped"]
    assert float(model.optimizer.dynamic_scale) == 2.0 ** (40 - row["skipped"])
    assert np.isfinite(row["loss"])


def test_a_gradient_that_no_scale_mends_is(folder):
    with pytest.raises(NotFiniteError, match=r"minibatch 7 of epoch 1, even .* by 0\.5"):
        fit(folder, "stop", bad=range(3, STEPS), scale=8.0)
    assert not folder.last.exists()


def test_a_hundred_in_a_row_are_with_skip_too(folder):
    with pytest.raises(NotFiniteError, match="last 100 minibatches, up to minibatch 120 of epoch"):
        fit(folder, "skip", bad=range(20, STEPS))
    assert not folder.last.exists()


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_an_epoch_of_which_nothing_was_counted_is(folder, on_nan):
    with pytest.raises(NotFiniteError, match="first minibatch to minibatch 5 of epoch 2"):
        fit(folder, on_nan, bad=range(5, 10), epochs=2, steps=5)
    # (`read_history` wants the columns of validation, too.)
    (row,) = csv.DictReader(folder.history.read_text().splitlines())
    assert float(row["epoch"]) == 1


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_test_loss_that_is_not_finite_is(folder, on_nan):
    with pytest.raises(NotFiniteError, match="test loss is nan after minibatch 5 of epoch 1"):
        fit(folder, on_nan, test=np.nan, steps=5)
    assert not folder.checkpoints.is_dir() or not list(folder.checkpoints.iterdir())
