"""Which numbers are in force."""

import dataclasses
import math

import pytest

import config
from esgd_tf.cli.flags import FlagError, define_flags, help_text, parse
from esgd_tf.cli.settings import choose_preset, make_settings, resume_settings, stretched
from esgd_tf.runs.components import learning_rate, make_coupling
from esgd_tf.runs.errors import RunFolderError
from esgd_tf.runs.experiment import OPTIMIZERS, REPLICATED, Experiment
from esgd_tf.runs.setting import Number, setting
from esgd_tf.runs.settings import epoch_steps, settings_table


def settings(*flags):
    return make_settings(parsed(*flags), config.PRESETS)


def parsed(*flags):
    fv = define_flags()
    parse(fv, ["train.py", *flags])
    return fv


def test_the_seeds_command_is_the_wide_resnet_on_cifar10():
    chosen = settings("-opt", "entropy-sgd", "-L", "20")
    e = chosen.experiment
    assert (e.dataset, e.model, e.optimizer, e.langevin_steps) == (
        "cifar10", "wrn-28-10", "entropy-sgd", 20)  # fmt: skip
    assert (e.epochs, e.learning_rate, e.lr_drops, e.lr_factor) == (200, 1.0, (80, 160), 0.2)
    assert chosen.overridden == ("langevin_steps",)


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ([], "wrn-cifar10"),
        (["-d", "cifar100"], "wrn-cifar100"),
        (["-m", "allcnn"], "allcnn-cifar10"),
        (["-d", "mnist"], "lenet"),
        (["-d", "mnist", "-m", "mnistfc"], "mnistfc"),
        (["-d", "fashion_mnist"], "lenet"),
        (["-d", "fashion_mnist", "-m", "mnistfc"], "mnistfc"),
        (["-d", "fashion_mnist_small"], "quickstart"),
        (["-d", "cifar10", "-m", "mnistconv"], "wrn-cifar10"),
        (["-d", "mnist", "--preset", "quickstart"], "quickstart"),
    ],
)
def test_the_preset_that_fits(flags, preset):
    assert choose_preset(parsed(*flags), config.PRESETS) == preset


def test_flags_override_and_are_marked():
    chosen = settings("-opt", "momentum", "--l2", "0.01", "-d", "cifar10", "-b", "64")
    assert chosen.experiment.weight_decay == 0.01
    assert chosen.experiment.batch_size == 64
    assert set(chosen.overridden) == {"weight_decay", "dataset", "batch_size"}
    table = settings_table(chosen)
    assert "weight_decay*: 0.01" in table
    assert "learning_rate: 0.1" in table
    assert "gamma" not in table  # no meaning for SGD
    assert max(map(len, table.splitlines())) <= 80


def test_other_epochs_stretch_the_drops_unless_given():
    assert settings("-e", "20").experiment.lr_drops == (8, 16)
    assert settings("-e", "20", "--lr_drops", "5,7.5").experiment.lr_drops == (5, 7.5)


def test_every_preset_has_every_optimizer_with_its_own_name():
    assert set(config.PRESETS) >= {"mnistfc", "lenet", "allcnn-cifar10", "wrn-cifar10",
                                   "wrn-cifar100", "conv-cifar10", "quickstart"}  # fmt: skip
    for by_optimizer in config.PRESETS.values():
        assert set(by_optimizer) == set(OPTIMIZERS)
        for name, experiment in by_optimizer.items():
            assert experiment.optimizer == name
            has_inner_loop = name.startswith("entropy-") or name == "parle"
            assert (experiment.langevin_steps > 0) == has_inner_loop
            assert (experiment.replicas > 1) == (name in REPLICATED)
            with pytest.raises(dataclasses.FrozenInstanceError):
                experiment.learning_rate = 0.0


def test_a_run_that_goes_on_keeps_its_numbers():
    stored = settings("--preset", "quickstart", "--gamma", "0.5", "-s", "7").to_dict()
    going_on = resume_settings(parsed("-rl"), config.PRESETS, stored)
    assert going_on.experiment.gamma == 0.5
    assert going_on.experiment.dataset == "fashion_mnist_small"
    assert going_on.run.seed == 7
    longer = resume_settings(parsed("-rl", "-e", "40"), config.PRESETS, stored)
    assert longer.experiment.epochs == 40
    assert longer.experiment.lr_drops == (12, 17)  # those of the run, not stretched anew
    same = resume_settings(parsed("-rl", "--gamma", "0.5"), config.PRESETS, stored)
    assert same.experiment == going_on.experiment


@pytest.mark.parametrize(
    "flags", [["--gamma", "0.1"], ["-s", "8"], ["-L", "5"], ["-opt", "sgd"], ["-d", "mnist"]]
)
def test_a_run_does_not_go_on_as_another_one(flags):
    stored = settings("--preset", "quickstart", "--gamma", "0.5", "-s", "7").to_dict()
    with pytest.raises(FlagError, match="differs from the run"):
        resume_settings(parsed("-rl", *flags), config.PRESETS, stored)


def test_a_config_of_another_version_is_refused():
    stored = settings().to_dict()
    del stored["experiment"]["gamma"]
    stored["experiment"]["warp"] = 9
    with pytest.raises(RunFolderError, match="of another version: 'warp' is unknown"):
        resume_settings(parsed("-rl"), config.PRESETS, stored)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["-opt", "entropy-sgd", "-L", "20"], "langevin_learning_rate", 0.8),
        (["-opt", "momentum"], "learning_rate", 0.8),
        (["-opt", "momentum", "--lr", "0.05"], "learning_rate", 0.4),
        (["-opt", "parle"], "langevin_learning_rate", 0.8),
        (["-opt", "rsgd", "-L", "5", "--langevin_lr", "0.05"], "langevin_learning_rate", 0.4),
        (["-opt", "rsgd"], "learning_rate", 0.8),
    ],
)
def test_the_linear_rule_scales_the_rate_that_sees_minibatches(flags, name, value):
    plain, scaled = settings(*flags), settings(*flags, "-b", "1024", "--scale_lr")
    assert getattr(scaled.experiment, name) == pytest.approx(value)
    others = {"batch_size", name}
    for field in dataclasses.fields(plain.experiment):
        if field.name not in others:
            assert getattr(plain.experiment, field.name) == getattr(scaled.experiment, field.name)
    assert name in scaled.overridden
    # The preset's own batch is the measure.
    assert settings(*flags, "--scale_lr").experiment == plain.experiment


def test_a_run_may_go_on_on_other_devices_but_not_with_other_batch_norm():
    stored = settings("-d", "cifar10").to_dict()
    moved = resume_settings(
        parsed("--strategy", "mirrored", "--devices", "GPU:0,GPU:1", "--on_nan", "skip"),
        config.PRESETS,
        stored,
    )
    assert moved.run.strategy == "mirrored"
    assert moved.run.devices == ["GPU:0", "GPU:1"]
    assert moved.run.on_nan == "skip"
    assert max(map(len, settings_table(moved).splitlines())) <= 80
    with pytest.raises(FlagError, match="--sync_bn=True differs"):
        resume_settings(parsed("--sync_bn"), config.PRESETS, stored)


def test_a_run_of_before_a_flag_existed_has_its_default():
    stored = settings("-d", "cifar10").to_dict()
    del stored["run"]["on_nan"], stored["run"]["checkpoint_steps"]
    assert resume_settings(parsed(), config.PRESETS, stored).run.on_nan == "stop"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-opt", "momentum", "--replicas", "3"], "--replicas has no meaning for -opt momentum"),
        (["-opt", "momentum", "--monitor", "5"], "--monitor has no meaning for -opt momentum"),
        (["-opt", "easgd", "--focusing", "linear"], "--focusing has no meaning for -opt easgd"),
        (["-opt", "easgd", "--coupling_max", "1"], "--coupling_max has no meaning for -opt easgd"),
        (["-opt", "rsgd", "--gamma", "1"], "--gamma has no meaning for -opt rsgd"),
        (["-opt", "easgd", "--coupling_gamma", "1.5"], "alpha, at most 1"),
        (
            ["-opt", "easgd", "--replicas", "4", "--coupling_gamma", "0.3"],
            "their product must be at most 1",
        ),
        (["-opt", "rsgd", "--initialization", "same"], "no distance to measure"),
        (["-opt", "rsgd", "--replicas", "1"], "nothing to couple"),
        (["-opt", "rsgd", "--focusing_growth", "0.5"], "must be at least 1"),
        (["-opt", "parle", "-L", "0"], "an inner loop of at least 1 step"),
    ],
)
def test_what_makes_no_sense_for_replicas(flags, sentence):
    with pytest.raises(FlagError, match=sentence):
        settings("--preset", "quickstart", *flags)


def test_replicas_of_entropy_sgd_take_its_flags_and_show_them():
    chosen = settings("--preset", "quickstart", "-opt", "rsgd", "-L", "5", "--gamma", "0.5")
    assert (chosen.experiment.langevin_steps, chosen.experiment.gamma) == (5, 0.5)
    table = settings_table(chosen)
    assert "gamma*: 0.5" in table
    assert "replicas: 3" in table
    assert max(map(len, table.splitlines())) <= 80
    assert "replicas" not in settings_table(settings("-opt", "momentum"))


def test_an_epoch_of_replicas_is_shared_or_each():
    assert epoch_steps(469, 3, "shared") == 156
    assert epoch_steps(469, 3, "each") == 469
    assert epoch_steps(469, 1, "shared") == 469
    assert epoch_steps(1, 3, "shared") == 1


def test_corruptions_are_checked_shown_and_kept():
    chosen = settings("--corrupt", "label_noise:0.2+gaussian:0.5", "--corruption_seed", "7")
    assert "corrupt*: label_noise:0.2+gaussian:0.5" in settings_table(chosen)
    assert chosen.to_dict()["experiment"]["corruption_seed"] == 7
    assert "corrupt" not in settings_table(settings())
    with pytest.raises(FlagError, match="--corrupt=label_noise:2: "):
        settings("--corrupt", "label_noise:2")


@pytest.mark.parametrize("replicas", [2, 4])
def test_alpha_of_easgd_is_its_share_of_0_9(replicas):
    experiment = settings("-opt", "easgd", "--replicas", str(replicas)).experiment
    assert make_coupling(experiment, 100).alpha == pytest.approx(0.9 / replicas)


@pytest.mark.parametrize("optimizer", ["rsgd", "easgd"])
def test_replicas_of_entropy_sgd_take_its_preset(optimizer):
    for name in ("quickstart", "wrn-cifar10", "conv-cifar10"):
        chosen = settings("--preset", name, "-opt", optimizer, "-L", "20").experiment
        entropy = config.PRESETS[name]["entropy-sgd"]
        coupled = config.PRESETS[name][optimizer]
        for field in (
            "learning_rate", "lr_drops", "lr_factor", "gamma", "scoping", "langevin_learning_rate",
            "noise", "dropout",
            "outer_momentum", "epochs", "weight_decay",
        ):  # fmt: skip
            assert getattr(chosen, field) == getattr(entropy, field), field
        for field in ("replicas", "coupling_every", "focusing", "initialization", "optimizer"):
            assert getattr(chosen, field) == getattr(coupled, field), field
        assert chosen.langevin_steps == 20
        if optimizer == "rsgd":
            # The stiffest spring goes as far in a step as without the inner loop.
            of_step = coupled.coupling_max * coupled.learning_rate
            assert chosen.coupling_max * chosen.learning_rate == of_step
        plain = settings("--preset", name, "-opt", optimizer, "-L", "0").experiment
        assert plain == coupled
    given = settings("--preset", "quickstart", "-opt", "rsgd", "-L", "20", "--lr", "0.3")
    assert given.experiment.learning_rate == 0.3


def test_a_coupling_that_is_stretched_is_spoken_of():
    stored = settings("--preset", "quickstart", "-opt", "rsgd").to_dict()
    longer = resume_settings(parsed("-rl", "-e", "40"), config.PRESETS, stored)
    assert stretched(stored, longer) == (
        "--epochs=40: the coupling, which was to grow over 20 epochs, grows over 40 from the "
        "start, so it jumps back to where that law has it by now"
    )
    shorter = resume_settings(parsed("-rl", "-e", "10"), config.PRESETS, stored)
    assert "grows over 10 from the start, so it jumps on to" in stretched(stored, shorter)
    assert stretched(stored, resume_settings(parsed("-rl"), config.PRESETS, stored)) is None
    for flags in (["-opt", "easgd"], ["-opt", "rsgd", "--focusing", "none"], ["-opt", "momentum"]):
        stored = settings("--preset", "quickstart", *flags).to_dict()
        longer = resume_settings(parsed("-rl", "-e", "40"), config.PRESETS, stored)
        assert stretched(stored, longer) is None


@dataclasses.dataclass(frozen=True)
class WithOneMore(Experiment):
    warmth: float = setting(
        Number(below=2), "how warm it is", "The algorithm", short="w", default=0.5,
        means=lambda optimizer, inner_loop: optimizer != "adam",
    )  # fmt: skip


class TestOneSettingIsOneEdit:
    """A field of a dataclass becomes a flag, its help, its checks and its row, by itself."""

    presets = {  # noqa: RUF012
        name: {
            optimizer: WithOneMore(**dataclasses.asdict(experiment))
            for optimizer, experiment in by_optimizer.items()
        }
        for name, by_optimizer in config.PRESETS.items()
    }

    def parsed(self, *flags):
        fv = define_flags(WithOneMore)
        parse(fv, ["train.py", *flags])
        return fv

    def test_flag_and_row(self):
        for flag in ("--warmth", "-w"):
            chosen = make_settings(self.parsed(flag, "1.5"), self.presets)
            assert chosen.experiment.warmth == 1.5
            assert "warmth*: 1.5" in settings_table(chosen)
        assert "warmth: 0.5" in settings_table(make_settings(self.parsed(), self.presets))

    def test_help(self):
        text = help_text(self.parsed(), {"warmth": 0.5}, WithOneMore)
        algorithm = text.split("The algorithm:")[1].split("Replicas")[0]
        assert "-w, --warmth" in algorithm and "how warm it is (preset: 0.5)" in algorithm

    def test_range(self):
        with pytest.raises(FlagError, match="--warmth=2: must be a finite number at least 0 and b"):
            self.parsed("--warmth", "2")

    def test_meaning(self):
        with pytest.raises(FlagError, match="--warmth has no meaning for -opt adam"):
            make_settings(self.parsed("-opt", "adam", "-w", "1"), self.presets)
        adam = make_settings(self.parsed("-opt", "adam"), self.presets)
        assert "warmth" not in settings_table(adam)

    def test_config_json(self):
        stored = make_settings(self.parsed("-w", "1.5"), self.presets).to_dict()
        again = resume_settings(self.parsed(), self.presets, stored)
        assert again.experiment.warmth == 1.5
        with pytest.raises(FlagError, match=r"--warmth=0\.1 differs from the run"):
            resume_settings(self.parsed("-w", "0.1"), self.presets, stored)
        stored["experiment"]["warmth"] = 3
        with pytest.raises(RunFolderError, match="'warmth' is 3"):
            resume_settings(self.parsed(), self.presets, stored)


def test_a_run_of_before_the_settings_had_their_names_goes_on():
    stored = settings("--preset", "quickstart", "--lr", "0.3", "--l2", "0.1").to_dict()
    old = {"learning_rate": "lr", "weight_decay": "l2", "langevin_learning_rate": "langevin_lr"}
    before = dict(stored, overridden=[old[name] for name in stored["overridden"]])
    before["experiment"] = {old.get(n, n): v for n, v in stored["experiment"].items()}
    assert "lr" in before["experiment"]
    again = resume_settings(parsed(), config.PRESETS, before)
    assert again.to_dict() == stored


def test_the_step_size_falls_to_0_by_half_a_cosine_over_the_outer_updates():
    e = settings("--preset", "quickstart", "-L", "4", "-e", "3", "--lr_schedule", "cosine",
                 "-lr", "0.8").experiment  # fmt: skip
    assert e.lr_drops == ()
    rate = learning_rate(e, 8)  # 24 gradient evaluations are 6 outer updates
    expected = [0.4 * (1 + math.cos(math.pi * t / 6)) for t in range(7)]
    assert [float(rate(t)) for t in range(7)] == pytest.approx(expected, abs=1e-6)


def test_a_part_of_an_outer_update_at_the_end_has_a_step_above_0():
    flags = ("--preset", "quickstart", "-L", "5", "-e", "1", "--lr_schedule", "cosine")
    rate = learning_rate(settings(*flags).experiment, 6)
    assert float(rate(1)) > 0
    assert float(rate(2)) == 0


def test_drops_and_a_cosine_exclude_each_other():
    with pytest.raises(FlagError, match="--lr_drops has no meaning with --lr_schedule=cosine"):
        settings("--lr_schedule", "cosine", "--lr_drops", "3")


def test_more_epochs_stretch_a_cosine_and_it_is_said():
    flags = ("--preset", "quickstart", "--lr_schedule", "cosine")
    before = settings(*flags).to_dict()
    assert "falls over 30" in stretched(before, settings(*flags, "-e", "30"))
    assert stretched(before, settings(*flags)) is None


def test_some_images_are_left_to_train_on():
    flags = ("--preset", "quickstart", "--validation_images")
    assert settings(*flags, "8749").experiment.validation_images == 8749
    with pytest.raises(FlagError, match=r"has 8,750 training images: hold out fewer$"):
        settings(*flags, "8750")
