"""bench/trainloop.py and its processes of JAX, with a stand-in for JAX."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpsubmit.jobs.plan import make_plan

#: Answers as bench/jax_peer.py does: it trains by autograd, with a learning rate that may be wrong.
STAND_IN = """
import json, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {bench!r}]
import numpy as np, torch
import peers
from mlpsubmit import MLP

def trained(case, file, out):
    with np.load(file) as given:
        X = given["X"]
        X_test = given["X_test"] if "X_test" in given else None
    settings = {{"LR": case["lr"] * {factor}, "OPTIMIZER": case["optimizer"], "COMPILE": False}}
    problem = peers.Problem(
        network=lambda: MLP(32, case["width"]), settings=settings, batch_fn=None,
        **{{n: case[n] for n in ("width", "steps", "trials", "gammas", "samples", "test_rows",
                                 "every", "thresholds")}})
    found = peers._ours(problem, X, X_test)
    np.savez(out, trace=found.train_loss, test_loss=found.test_loss[:, -1:].reshape(-1),
             steps=found.steps, timekeys=found.timekeys + {late})

for line in sys.stdin:
    request, answer = json.loads(line), {{}}
    if request["request"] == "check":
        trained(request["case"], request["file"], request["out"])
    elif request["request"] == "version":
        answer["version"] = "0.0"
    elif request["request"] == "run":
        answer["seconds"] = 0.5
    elif request["request"] == "product":
        answer["rate"] = 1e9
    elif request["request"] == "prepare" and request["case"]["width"] == 13:
        raise RuntimeError("thirteen")
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def trainloop(bench):
    return bench("trainloop")


@pytest.fixture
def peers(bench, tmp_path, monkeypatch):
    """A function that starts processes of the stand-in for JAX."""
    module, started = bench("peers"), []
    monkeypatch.setattr(module, "STEPS", 12)
    root = Path(module.__file__).parents[1]

    def start(count=1, factor=1.0, late=0):
        file = tmp_path / "stand_in.py"
        values = {"root": str(root), "bench": str(root / "bench"), "factor": factor, "late": late}
        file.write_text(STAND_IN.format(**values))
        monkeypatch.setattr(module, "PEER", file)
        started.append(module.Peers(sys.executable, count))
        return started[-1]

    yield start
    for one in started:
        one.__exit__()


def small(case, width=8):
    """Return the problem of a case at a small width."""
    problem = case.problem
    settings = {**problem.settings, "WIDTH": width}
    network = type(problem.network())
    kind = {"network": lambda: network(32, width)} if problem.kind == "relu" else {}
    return type(problem)(**{**vars(problem), "settings": settings, "width": width, **kind})


# ---- the same numerics ---------------------------------------------------------------------------


@pytest.mark.slow
def test_equal_trainings_pass_the_check(bench, trainloop, peers):
    check, started = bench("peers").check, peers()
    cases = [case for case in trainloop.CASES if case.problem.kind == "relu"]
    assert len(cases) == 6
    for case in cases:
        assert check(started, case.name, small(case)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"factor": 1.02}, r"online, width 64: (train losses differ from those of JAX|steps)"),
        ({"late": 1}, r"online, width 64: steps of thresholds are .*, in JAX "),
    ],
)
def test_what_trains_otherwise_ends_the_benchmark(wrong, text, bench, trainloop, peers):
    with pytest.raises(SystemExit, match=text):
        bench("peers").check(peers(**wrong), "online, width 64", small(trainloop.CASES[0]))


def test_thresholds_lie_between_losses_and_stop_some(bench):
    losses = np.array([[1.0, 0.9, 0.8], [1.0, 0.7, 0.5], [1.0, 0.95, 0.6]])
    first, last = bench("peers")._between(losses)
    assert 0.8 < first < 1.0
    assert 0.5 < last < 0.8
    assert 0 < (losses.min(axis=1) < last).sum() < 3
    assert np.abs(losses - last).min() > 0.01


@pytest.mark.slow
def test_a_process_that_ends_shows_why(trainloop, peers):
    started = peers(count=2)
    with pytest.raises(SystemExit, match=r"(?s)of JAX ended at 'prepare':.*RuntimeError: thirteen"):
        started.prepare("x", small(trainloop.CASES[0], width=13))


def test_an_interpreter_without_jax_is_refused(bench, tmp_path):
    find, error = bench("peers").jax_python, bench("peers").UserError
    with pytest.raises(
        error, match=r"--jax-python: got .*/none, which does not import jax \(.*No s"
    ):
        find(str(tmp_path / "none"))
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no jax' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(error, match=r"import jax \(ModuleNotFoundError: no jax\); give an interp"):
        find(str(fake))
    fake.write_text("#!/bin/sh\n")
    assert find(str(fake)) == str(fake)


def test_a_wrong_interpreter_is_an_error_of_the_command(trainloop, capsys):
    with pytest.raises(SystemExit) as ended:
        trainloop.main(["--jax-python", "/nowhere"])
    assert ended.value.code == 2
    assert "--jax-python: got /nowhere, which does not import jax" in capsys.readouterr().err


# ---- the figures ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_speed_of_processes_is_that_of_the_slowest(trainloop, peers):
    started, problem = peers(count=2), trainloop.CASES[0].problem
    started.prepare("x", problem)
    assert started.speed("x", problem) == 32 * problem.steps / 0.5
    assert started.product_rate() == 2e9


def test_ratios_are_those_of_each_round(trainloop):
    case = trainloop.CASES[0]
    needed = trainloop.operations(case)
    rounds = [
        {"run": 100.0, "JAX": 50.0, "plain loop": 10.0, "torch's products": 400 * needed},
        {"run": 300.0, "JAX": 300.0, "plain loop": 20.0, "torch's products": 600 * needed},
        {"run": 200.0, "JAX": 160.0, "plain loop": 40.0, "torch's products": 250 * needed},
    ]
    found = {one.what: one for one in trainloop.figures(case, rounds)}
    assert found["over JAX"].median == 1.25
    assert found["over JAX"].target == 1.3
    assert found["over JAX"].reached is False
    assert found["over plain"].median == 10
    assert found["of torch's products"].median == pytest.approx(0.5)
    assert found["of torch's products"].target == 0.65
    assert found["torch's products"].unit == "GFLOP/s"
    assert "of the peak" not in found
    line, summary = trainloop.line(list(found.values())), trainloop.summary(list(found.values()))
    assert "1.25 (1.30)" in line
    assert line.endswith("50% (65%)             -")
    assert "online, width 64: over JAX; online, width 64: of torch's products" in summary


def test_every_case_with_a_target_has_a_counterpart(trainloop):
    for case in trainloop.CASES:
        assert case.target in (1.0, 1.3)
        assert case.problem.trials * len(case.problem.gammas) == case.configs == 32
        assert case.problem.for_jax()["thresholds"] == trainloop.NEVER
    assert {case.limit for case in trainloop.CASES} == {0.65, 0.85, 0.95, None}


def test_configs_of_compared_cases_are_packed_as_their_width_allows(trainloop):
    for case in trainloop.CASES:
        plan = make_plan(trainloop.swept(case), max_tasks=2, threads=1)
        assert plan.packs <= case.configs / 2, case.name


@pytest.mark.slow
def test_a_run_is_measured_to_its_last_step(trainloop, monkeypatch):
    case = trainloop.Case("small", lambda: trainloop.mlp(8), 3, {"WIDTH": 8}, {"trial": range(2)})
    assert trainloop.packed_speed(case) > 0
    monkeypatch.setattr(trainloop, "NEVER", [1e9])
    with pytest.raises(RuntimeError, match="small: a config has stopped before its last step"):
        trainloop.packed_speed(case)


def test_the_peak_is_measured_where_there_is_a_compiler(trainloop, monkeypatch):
    with trainloop.peak_program() as program:
        assert trainloop.peak_rate(program) > 1e9
    monkeypatch.setenv("PATH", "/nowhere")
    with trainloop.peak_program() as program:
        assert program is None


def test_the_operations_of_a_step_are_those_of_the_formula(trainloop):
    weights = 64 * (32 + 64 + 1)
    needed = 2 * 256 * (4 * weights - 32 * 64)
    assert trainloop.operations(trainloop.CASES[0]) == pytest.approx(needed)
    assert isinstance(trainloop.products(4, torch.Generator(), False)(0)[0], torch.Tensor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--only", "no such case"],
            "--only: no name contains 'no such case'; they are: online, w",
        ),
        (["--only", "conv"], "--only: 'conv' is in names of further cases alone; add --all"),
        (["--repeats", "0"], "--repeats: got '0'; give a number of rounds from 1 on"),
        (["--repeats", "few"], "--repeats: got 'few'; give a number of rounds from 1 on"),
        (
            ["--jax-python", "/bin/false"],
            "--jax-python: got /bin/false, which does not import jax (failed)",
        ),
    ],
)
def test_options_that_are_refused(trainloop, options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        trainloop.main(options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
