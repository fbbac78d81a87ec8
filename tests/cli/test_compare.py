"""`compare` on run folders written by hand: the table, the seeds, the picture, the refusals."""

import csv
import json
import statistics
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.helpers import esgd_tf

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = {
    "dataset": "fashion_mnist_small", "model": "mnistfc", "optimizer": "entropy-sgd",
    "preprocessing": "meanstd", "augmentation": "none", "batch_size": 100, "bn_reestimate": 0,
    "langevin_steps": 20, "lr": 1.0,
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """A function that writes a run folder and returns its path."""

    def run(name, accuracies=(0.5, 0.75), seed=1, limit_steps=None, **experiment):
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "experiment": {**EXPERIMENT, **experiment},
            "run": {"seed": seed, "limit_steps": limit_steps},
        }
        (folder / "config.json").write_text(json.dumps(config))
        with (folder / "history.csv").open("w", newline="") as file:
            names = ["epoch", "gradient_evaluations", "val_accuracy", "val_loss", "seconds"]
            writer = csv.writer(file)
            writer.writerow(names)
            for k, accuracy in enumerate(accuracies, start=1):
                writer.writerow([k, 88 * k, accuracy, 1 - accuracy, 3000 * k])
        return folder

    return run


def compare(tmp_path, *words):
    return esgd_tf("compare", *words, "--out", tmp_path / "out.png")


def test_the_table_has_the_last_line_of_each_run(write, tmp_path, capsys):
    a = write("a", (0.9, 0.875))
    b = write("b", (0.25,), optimizer="momentum", langevin_steps=0)
    assert compare(tmp_path, a, b) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split("  ")[0] == "run"
    assert lines[2].endswith("L  error %    loss  grad. evals  epochs     time")
    assert lines[3].split() == ["a", "entropy-sgd", "20", "12.50", "0.1250", "176", "2", "1:40:00"]
    assert lines[4].split() == ["b", "momentum", "-", "75.00", "0.7500", "88", "1", "50:00"]
    assert "over seeds" not in "\n".join(lines)
    width, height = struct.unpack(">II", (tmp_path / "out.png").read_bytes()[16:24])
    assert width > height > 300


def test_seeds_are_summed_up(write, tmp_path, capsys):
    runs = [write(f"s{seed}", (accuracy,), seed=seed)
            for seed, accuracy in ((1, 0.7), (2, 0.8), (5, 0.85))]  # fmt: skip
    runs.append(write("other", (0.1,), seed=3, lr=0.5))
    runs.append(write("longer", (0.1, 0.2), seed=4))
    runs.append(write("again", (0.7,), seed=1))
    assert compare(tmp_path, *runs) == 0
    summary = capsys.readouterr().out.split("over seeds\n\n")[1].splitlines()
    errors = [30.0, 20.0, 15.0]
    spread = f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f}"
    assert summary[1].startswith("s1 ")
    assert " 1 2 5 " in summary[1]
    assert spread in summary[1]
    assert summary[2] == ""


def test_lines_fit_80_columns_and_long_names_stay_apart(write, tmp_path, capsys):
    names = [f"a-name-{'very-' * 20}long-{k}" for k in (1, 2)]
    runs = [write(name, (0.12345,) * 200, optimizer="entropy-adam", seed=k)
            for k, name in enumerate(names)]  # fmt: skip
    assert compare(tmp_path, *runs) == 0
    out = capsys.readouterr().out
    tables = [line for line in out.splitlines() if not line.startswith("written")]
    assert max(map(len, tables)) <= 80
    assert "long-1 " in out
    assert "long-2 " in out


def test_markdown(write, tmp_path, capsys):
    runs = [write("a|b", seed=1), write("c", seed=2)]
    assert compare(tmp_path, *runs, "--markdown") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| run | optimizer | L | error % |")
    assert rows[1] == "|" + " --- |" * 8
    assert rows[2].startswith(r"| a\|b | entropy-sgd | 20 | 25.00 |")
    assert len(rows) == 4 + 3


def test_an_evaluation_on_part_of_the_images_has_a_star(write, tmp_path, capsys):
    runs = [write("whole"), write("part", limit_steps=3), write("enough", limit_steps=18)]
    assert compare(tmp_path, *runs) == 0
    out = capsys.readouterr().out
    assert out.count("25.00*") == 1
    assert "(--limit_steps)" in out


def test_the_picture_has_a_colour_for_each_kind_of_run(write, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("esgd_tf.runs.figures.plot_comparison",
                        lambda curves, *others: drawn.extend(curves))  # fmt: skip
    runs = [write("s1", seed=1), write("s2", seed=2), write("t1", seed=1, optimizer="momentum")]
    compare(tmp_path, *runs)
    assert [label for label, _, _ in drawn] == ["entropy-sgd, L = 20"] * 2 + ["t1"]
    assert drawn[0][1:] == ([88, 176], [50.0, 25.0])
    drawn.clear()
    # Two groups of the same optimizer must not become one.
    runs += [write("u1", seed=1, lr=0.5), write("u2", seed=2, lr=0.5)]
    compare(tmp_path, *runs)
    assert [label for label, _, _ in drawn] == ["like s1"] * 2 + ["t1"] + ["like u1"] * 2


def refused(capsys, status, tmp_path, *words):
    assert compare(tmp_path, *words) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
    return captured.err


def test_what_cannot_be_compared(write, tmp_path, capsys):
    a, other = write("a"), write("other", dataset="mnist")
    error = refused(capsys, 1, tmp_path, a, other)
    assert "trained on mnist" in error
    assert "on fashion_mnist_small" in error
    assert "name each run once" in refused(capsys, 2, tmp_path, a, f"{a}/")
    assert "nothing to compare yet" in refused(capsys, 1, tmp_path, a, write("new", ()))
    assert "give RUN RUN..." in refused(capsys, 2, tmp_path, a)


def test_damaged_folders(write, tmp_path, capsys):
    a, b = write("a"), write("b")
    (b / "history.csv").write_text("epoch,seconds\n1,2\n")
    assert "history.csv is damaged" in refused(capsys, 1, tmp_path, a, b)
    (b / "history.csv").write_bytes(b"\xff\xfe\x00")
    assert "history.csv is damaged" in refused(capsys, 1, tmp_path, a, b)
    (b / "config.json").write_text('{"experiment": 3}')
    assert "config.json is damaged" in refused(capsys, 1, tmp_path, a, b)
    assert "does not exist" in refused(capsys, 1, tmp_path, a, tmp_path / "none")


def test_a_picture_that_cannot_be_written(write, tmp_path, capsys):
    a, b = write("a"), write("b")
    assert esgd_tf("compare", a, b, "--out", tmp_path / "out.pdf") == 2
    assert "must be the name of a .png file" in capsys.readouterr().err


def test_it_never_imports_tensorflow(write, tmp_path):
    code = (
        "import sys\n"
        "from esgd_tf.cli.commands import main\n"
        "status = main(['esgd_tf', 'compare', *sys.argv[1:]])\n"
        "loaded = [m for m in ('tensorflow', 'keras') if m in sys.modules]\n"
        "assert not loaded, loaded\n"
        "sys.exit(status)\n"
    )
    words = [str(write("a")), str(write("b")), "--out", str(tmp_path / "out.png")]
    result = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.png").exists()


def test_runs_of_walkers_are_passed_over_in_words(write, tmp_path, capsys):
    walkers = tmp_path / "walkers-nn-100-2"
    walkers.mkdir()
    (walkers / "config.json").write_text('{"command": "walkers", "settings": {}}')
    assert compare(tmp_path, write("a"), walkers, write("b")) == 0
    captured = capsys.readouterr()
    assert captured.err == f"esgd_tf compare: {walkers} is a run of walkers: passed over.\n"
    assert "walkers-nn" not in captured.out
    (tmp_path / "out.png").unlink()
    assert compare(tmp_path, walkers, walkers) == 1
    assert "there is nothing to compare" in capsys.readouterr().err


def test_other_models_and_corrupted_data_are_marked(write, tmp_path, capsys):
    a, b = write("a"), write("b", model="mnistconv")
    c = write("c", corrupt="double", corruption_seed=3)
    assert compare(tmp_path, a, b) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:3] == ["run", "model", "optimizer"]
    assert [line.split()[1] for line in lines[3:5]] == ["mnistfc", "mnistconv"]
    assert compare(tmp_path, a, b, c) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[2].split()[:4] == ["run", "model", "corrupt", "optimizer"]
    assert [line.split()[2] for line in lines[3:6]] == ["none", "none", "double"]
    assert "their numbers do not compare" in " ".join(out.split())
    assert max(len(line) for line in lines if not line.startswith("written")) <= 80


def test_names_with_dollars_and_underscores_do_not_break_pictures(write, tmp_path, monkeypatch):
    """Matplotlib would set a formula, or fail to, and leave "_x" out of the legend."""
    from esgd_tf.runs import figures

    shown = []
    new_figure = figures.new_figure

    def noted(*size):
        shown.append(new_figure(*size))
        return shown[-1]

    monkeypatch.setattr(figures, "new_figure", noted)
    names = ["$_{x}$", "$\\frac$ and $", "_hidden"]
    runs = [
        write(name, optimizer=o) for name, o in zip(names, ("sgd", "adam", "momentum"), strict=True)
    ]
    assert compare(tmp_path, *runs) == 0
    (legend,) = [axis.get_legend() for axis in shown[0].axes]
    # A dollar behind a backslash is one that is shown.
    texts = [text.get_text().replace(r"\$", "$").strip() for text in legend.get_texts()]
    assert texts == names


def test_output_paths(write, null_device, tmp_path, monkeypatch):
    """A device stays one, a link leads to the picture, and ~ is the home of the user."""
    write("a")
    b = write("b")
    (tmp_path / "null.png").symlink_to(null_device)
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for out in (tmp_path / "null.png", tmp_path / "link.png", "~/home.png"):
        assert esgd_tf("compare", "~/a", b, f"--out={out}") == 0
    assert (tmp_path / "null.png").readlink() == null_device
    assert null_device.is_char_device()
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").stat().st_size > 1000
    assert (tmp_path / "home.png").exists()
