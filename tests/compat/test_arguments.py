"""The command line of a script."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mlpsubmit.compat import base_args, load_json, parse_args
from mlpsubmit.errors import UserError
from mlpsubmit.spec.hyperparameters import Hyperparameters

#: A value for the flag of every hyperparameter, and what a script then reads.
VALUES = {
    "online": (["False"], False),
    "n_samples": (["8", "1e2"], [8, 100]),
    "n_train": (["1e3"], 1000),
    "n_test": (["10"], 10),
    "num_trials": (["3"], 3),
    "max_iter": (["1e4"], 10_000),
    "lr": (["0.5"], 0.5),
    "depth": (["3"], 3),
    "width": (["64"], 64),
    "gamma": (["10"], 10.0),
    "loss_checkpoints": (["0.5", "0.1"], [0.5, 0.1]),
    "percent_thresholds": (["0.5"], [0.5]),
    "ema_smoother": (["0"], 0.0),
    "onlythresholds": (["no"], False),
    "seed": (["7"], 7),
    "deterministic": (["0"], False),
    "devices": (["0", "2"], [0, 2]),
    "verbose": (["TRUE"], True),
    "datasethps": (['{"d": 3, "classes": null}'], {"d": 3, "classes": None}),
    "target_monomials": (['[{"0": 1}]'], [{"0": 1}]),
    "other_model_grabs": (['{"a": "get_W_ii"}'], {"a": "get_W_ii"}),
    "other_model_kwargs": (['{"a": {"i": 1}}'], {"a": {"i": 1}}),
    "other_model_gram": (['{"a": {"source": "out"}}'], {"a": {"source": "out"}}),
    "optimizer": (["Adam"], "Adam"),
    "momentum": (["0.9"], 0.9),
    "nesterov": (["yes"], True),
    "weight_decay": (["1e-3"], 1e-3),
    "betas": (["0.5", "0.9"], [0.5, 0.9]),
    "eps": (["1e-6"], 1e-6),
    "optimizer_kwargs": (['{"alpha": 0.9}'], {"alpha": 0.9}),
    "loss": (["CrossEntropyLoss"], "CrossEntropyLoss"),
    "parametrization": (["NTP"], "ntp"),
    "centered": (["f"], False),
    "model": (["mlp"], "mlp"),
    "d_out": (["10"], 10),
    "record_every": (["log:50"], "log:50"),
    "eval_every": (["5"], 5),
    "grab_every": (["2"], 2),
    "precision": (["tf32"], "tf32"),
    "compile": (["false"], False),
    "pack_size": (["4"], 4),
    "checkpoint_minutes": (["1"], 1.0),
    "grad_clip_norm": (["1"], 1.0),
    "init_weights": (["None"], None),
    "keep_state": (["yes"], True),
    "lr_factors": (['{"input_layer.*": 0}'], {"input_layer.*": 0.0}),
    "lr_final_factor": (["0.1"], 0.1),
    "lr_schedule": (["cosine"], "cosine"),
    "metric_thresholds": (['{"test_accuracy": [0.9]}'], {"test_accuracy": (0.9,)}),
    "metrics": (['["accuracy"]'], {"accuracy": ("accuracy", "max")}),
    "save_weights": (["final"], "final"),
    "stop_on": (["test_accuracy"], "test_accuracy"),
    "warmup_steps": (["10"], 10),
}

LOWER = ("datasethps", "other_model_grabs", "other_model_kwargs", "other_model_gram")


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        parse_args(list(argv))
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_every_hyperparameter_has_a_flag():
    assert set(VALUES) == set(Hyperparameters.model_fields)
    for field, (texts, expected) in VALUES.items():
        name = field if field in LOWER else field.upper()
        value = getattr(parse_args([f"--{name}", *texts]), name)
        assert value == expected
        assert type(value) is type(expected)


def test_the_defaults_are_those_of_mlpscape():
    args = parse_args([])
    assert vars(args) == vars(base_args())
    assert args.ONLINE is True
    assert args.N_SAMPLES == [1024]
    assert args.LOSS_CHECKPOINTS == [0.15, 0.1]
    assert args.MAX_ITER == 100_000
    assert (args.WIDTH, args.width, args.DEPTH, args.depth) == (8192, 8192, 2, 2)
    assert args.DETERMINISTIC is args.DETERMINSITIC is True
    assert args.datasethps["cutoff_mode"] == 40_000
    assert args.datasethps["classes"] is None
    assert args.TARGET_MONOMIALS is args.datasethps_path is args.target_monomials_path is None
    assert args.other_model_grabs == args.other_model_gram == args.other_model_kwargs == {}
    assert (args.W_source, args.concat_outside) == ("in", True)
    assert (args.DATASET, args.TARGET_FUNCTION_TYPE) == ("synthetic", "monomial")
    assert args.EXPT_NAME == "mlp-learning-curves"
    # Other hyperparameters are there only where their flag is given.
    assert not hasattr(args, "PACK_SIZE")


def test_base_args_does_not_look_at_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel", "-f", "kernel.json"])
    assert base_args().GAMMA == 1.0


def test_changing_one_namespace_changes_no_other():
    base_args().datasethps["d"] = 3
    base_args().N_SAMPLES.append(1)
    base_args().other_model_grabs["a"] = "b"
    assert base_args().datasethps["d"] == 200
    assert base_args().N_SAMPLES == [1024]
    assert base_args().other_model_grabs == {}


@pytest.mark.parametrize("flag", ["--WIDTH", "--width"])
def test_modelscape_spells_it_in_lower_case(flag):
    args = parse_args([flag, "64", "--DETERMINSITIC", "False"])
    assert args.WIDTH == args.width == 64
    assert args.DETERMINISTIC is args.DETERMINSITIC is False


def test_further_flags():
    argv = ["--W_source", "out", "--concat_outside", "False", "--EXPT_NAME", "mine"]
    argv += ["--DATASET", "cifar10", "--datasethps_path", "d.json", "--DEVICES", "all"]
    args = parse_args([*argv, "--target_monomials_path", "m.json", "--TARGET_FUNCTION_TYPE", "x"])
    assert (args.W_source, args.concat_outside, args.EXPT_NAME) == ("out", False, "mine")
    assert (args.DATASET, args.datasethps_path) == ("cifar10", "d.json")
    assert (args.target_monomials_path, args.TARGET_FUNCTION_TYPE) == ("m.json", "x")
    assert args.DEVICES == "all"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--ONLINE", "maybe"], "--ONLINE: got 'maybe'; should be True or False (or yes, no, t, "),
        (["--MAX_ITER", "1.5"], "--MAX_ITER: got 1.5; should be an integer >= 1 (gradient steps"),
        (["--N_SAMPLES", "8", "no"], "--N_SAMPLES: got 'no'; should be an integer >= 1"),
        (["--LR", "-1"], "--LR: got -1; should be a finite number > 0 (base learning rate)"),
        (["--LOSS_CHECKPOINTS", "0"], "--LOSS_CHECKPOINTS: got 0; should be a list of positive"),
        (
            ["--DEVICES", "x"],
            "--DEVICES: got 'x'; should be 'all' or a list of distinct GPU indices",
        ),
        (["--datasethps", "{d: 3}"], "--datasethps: got '{d: 3}', which is not JSON (Expecting"),
        (["--datasethps", "[1]"], "--datasethps: got [1]; should be a dictionary whose keys are n"),
        (
            ["--datasethps", "x"],
            """should be of the form '{"d": 200, "alpha": 2.0}' or '[{"0": 1}""",
        ),
        (["--RECORD_EVERY", "log:1"], "--RECORD_EVERY: got 'log:1'; should be an integer >= 1, or"),
        (["--WIDT", "3"], "unrecognized arguments: --WIDT 3 (did you mean 'WIDTH'?)"),
        (["--GAM", "3"], "unrecognized arguments: --GAM 3"),
        (["--W_source", "up"], "--W_source: invalid choice: 'up'"),
    ],
)
def test_bad_flags_and_values_are_refused(capsys, argv, expected):
    assert expected in refused(capsys, *argv)


def test_help_explains_the_hyperparameters(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--GAMMA VALUE richness: outputs are divided by it" in text
    assert "--N_SAMPLES VALUE [VALUE ...] batch size online, training-set size offline" in text


def test_json_files(tmp_path):
    file = tmp_path / "hps.json"
    file.write_text(json.dumps({"d": 3}))
    assert load_json(file) == {"d": 3}
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        load_json(tmp_path / "absent.json")
    file.write_text("{")
    with pytest.raises(UserError, match=r"hps\.json: is not JSON: "):
        load_json(file)


@pytest.mark.slow
def test_a_wrong_flag_is_refused_before_torch_is_imported():
    code = (
        "import sys, mlpsubmit.compat as compat; assert 'torch' not in sys.modules; "
        "compat.parse_args(['--LR', '0.1']); "
        "assert 'torch' not in sys.modules; assert sorted(compat.__all__) == "
        "sorted(name for name in dir(compat)); [getattr(compat, n) for n in compat.__all__]"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_a_name_that_is_not_there():
    import mlpsubmit.compat as compat

    with pytest.raises(AttributeError, match=r"mlpsubmit\.compat attribute nonsense"):
        _ = compat.nonsense
