"""Jobs are runs: they continue where it stopped, survive failures, and train in workers."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpsubmit import RunError, UserError, open_run
from mlpsubmit.compat import ExptTrace, Monomial


def submissions(name="study"):
    return len(open_run(name).directory.submissions())


def test_the_same_call_again_trains_nothing(run, config, gaussian, capsys):
    arguments = ([[8], [0, 1]], ["ntrain", "trial"], config(), {"base_bfn": gaussian})
    first = run(*arguments)
    assert "pack 0000000: 2 configs" in capsys.readouterr().out
    np.testing.assert_equal(run(*arguments), first)
    out, err = capsys.readouterr()
    assert out == ""
    assert "study done: 2/2 configs" in err
    assert submissions() == 1


def test_more_of_an_iterator_trains_only_that(run, config, gaussian, capsys):
    def sized(trials):
        capsys.readouterr()
        grabs = {"g": lambda model, **kwargs: model.input_layer.weight.sum()}
        iterators = [[8], range(trials)]
        settings = config(NUM_TRIALS=trials, otherreturns=grabs)
        return run(iterators, ["ntrain", "trial"], settings, {"base_bfn": gaussian})

    two, three = sized(2), sized(3)
    assert "pack 0000000: 1 config in" in capsys.readouterr().out
    assert three["losses"]["vals"].items() >= two["losses"]["vals"].items()
    assert three["extras"]["g"]["vals"].items() >= two["extras"]["g"]["vals"].items()
    run([[8], [0]], ["ntrain", "trial"], config(), {"base_bfn": gaussian}, fresh=True)
    assert "1 config in" in capsys.readouterr().out


def breaking(width):
    """Return a grab that raises for models of one width."""

    def grab(model, WIDTH, **kwargs):
        if width == WIDTH:
            raise ValueError(f"no width of {WIDTH}")
        return WIDTH

    return grab


def test_failures_are_left_out_and_reported_once(run, config, gaussian, capsys):
    result = run(
        [[8], [0, 1], [4, 6, 8]],
        ["ntrain", "trial", "WIDTH"],
        config(WIDTH=[4, 6, 8], width=8192, otherreturns={"w": breaking(6)}),
        {"base_bfn": gaussian},
    )
    assert result["jobs"] == [(8, 0, 4), (8, 0, 8), (8, 1, 4), (8, 1, 8)]
    assert result["extras"]["w"]["vals"][8, 1, 8] == 8
    err = capsys.readouterr().err
    assert (
        err.count("failed: GrabError: grab 'w' of model 0 at step 29 failed: ValueError: no w") == 1
    )
    assert (
        "2 of 6 configs have no result and are left out of the returned dictionary; run the script "
        "again to train them (finished results are reused)"
    ) in err
    # With the grab gone, the others are not trained again.
    result = run(
        [[8], [0, 1], [4, 6, 8]],
        ["ntrain", "trial", "WIDTH"],
        config(otherreturns={}, WIDTH=[4, 6, 8], width=8192),
        {"base_bfn": gaussian},
    )
    assert len(result["jobs"]) == 6


def test_nothing_at_all_is_an_error(run, config):
    def short(bsz, gen, X=None, y=None):
        def batch_fn(step):
            if step == 9:
                raise ValueError("the data are used up")
            return torch.ones(bsz, 2), torch.ones(bsz)

        return batch_fn

    message = r"run \d.*: none of its 2 configs has a result: ValueError: the data are used up"
    with pytest.raises(RunError, match=message):
        run([[8], [0, 1]], ["ntrain", "trial"], config(), {"base_bfn": short})


def test_every_job_finds_its_measurements(run, config):
    """Keys and jobs agree for values of any type."""

    class Workload:
        def __str__(self):
            return "a kind"

    def bfn(bsz, gen, target, kind, pair, X=None, y=None):
        return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))

    result = run(
        [
            np.array([4, 8]),
            [0],
            [Monomial({0: 2})],
            [Workload(), None],
            [(1, "a"), (2, "b")],
            [True],
            [0.5],
        ],
        ["ntrain", "trial", "target", "kind", "pair", "CENTERED", "GAMMA"],
        config(otherreturns={"g": lambda model: 1.0}),
        {"base_bfn": bfn},
    )
    assert result["jobs"][0] == (4, 0, "$x_{0}^2$", "a kind", "(1, 'a')", True, 0.5)
    assert len(result["jobs"]) == 8
    for trace in (result["losses"], result["timekeys"], result["extras"]["g"]):
        found = ExptTrace.deserialize(trace)
        assert all(np.isfinite(found[job]).all() for job in result["jobs"])
    again = pickle.loads(pickle.dumps(result))
    assert again["jobs"] == result["jobs"]


def test_a_study_that_diverged_has_its_grabs_without_measurements(run, config, gaussian, traces):
    result = run(
        [[8], [0]],
        ["ntrain", "trial"],
        config(LR=1e30, otherreturns={"g": lambda model: 1.0}),
        {"base_bfn": gaussian},
    )
    assert not np.isfinite(result["losses"]["vals"][8, 0])
    assert "g" in result["extras"]


def test_ctrl_c_saves_what_trains_in_this_process(run, config, workplace):
    flag = str(workplace / "interrupted")

    def bfn(bsz, gen, X=None, y=None):
        def batch_fn(step):
            if step == 20 and not os.path.exists(flag):
                open(flag, "w").close()
                os.kill(os.getpid(), signal.SIGINT)
            inputs = torch.randn(bsz, 4, generator=gen)
            return inputs, inputs[:, 0]

        return batch_fn

    arguments = ([[8], [0]], ["ntrain", "trial"], config(), {"base_bfn": bfn})
    with pytest.raises(KeyboardInterrupt):
        run(*arguments)
    status = open_run("study").status()
    assert (status.done, status.state) == (0, "stopped")
    assert open_run("study").directory.checkpoint("0000000").exists()
    resumed = run(*arguments)
    np.testing.assert_equal(resumed, run(*arguments, name="undisturbed"))


def test_the_executor_is_chosen_by_argument_or_variable(run, config, gaussian, monkeypatch):
    arguments = ([[8], [0]], ["ntrain", "trial"], config(), {"base_bfn": gaussian})
    monkeypatch.setenv("MLPSUBMIT_EXECUTOR", "cluster")
    message = "MLPSUBMIT_EXECUTOR=cluster: no such executor; valid are auto, slurm, local, debug"
    with pytest.raises(UserError, match=f"^{message}$"):
        run(*arguments, use_mp=None)
    with pytest.raises(UserError, match="executor cluster: no such executor; valid are auto, slu"):
        run(*arguments, use_mp=None, executor="cluster")
    assert run(*arguments, use_mp=True, executor="debug")["jobs"] == [(8, 0)]
    assert run(*arguments, name="other")["jobs"] == [(8, 0)]  # use_mp=False leaves no choice
    monkeypatch.setenv("MLPSUBMIT_EXECUTOR", "debug")
    assert run(*arguments, use_mp=None, name="third")["jobs"] == [(8, 0)]
    with pytest.raises(UserError, match="--tasks 2: the debug executor has one task"):
        run(*arguments, tasks=2)
    with pytest.raises(UserError, match=r"--executor debug: only SLURM takes --template, --time"):
        run(*arguments, template="gpu", slurm={"time": "1:00"}, name="fourth")


def test_runs_dir(run, config, gaussian, workplace):
    arguments = ([[8], [0]], ["ntrain", "trial"], config(), {"base_bfn": gaussian})
    run(*arguments, runs_dir=workplace / "elsewhere")
    assert open_run("study", workplace / "elsewhere").status().complete
    assert not (workplace / "mlpruns").exists()


SCRIPT = """
import os, pickle, signal, sys, time
import torch
import torch.multiprocessing as mp
from mlpsubmit.compat import FileManager, ensure_torch, parse_args, run_job_iterator

def pausing_bfn(X_total, pause, X=None, y=None, bsz=128, gen=None, **kwargs):
    # Waits at step 25 until a file is gone, or the worker is told to stop.
    stopped = []
    stop = signal.getsignal(signal.SIGTERM)
    if callable(stop):
        signal.signal(signal.SIGTERM, lambda *args: (stopped.append(1), stop(*args)))
    def batch_fn(step, X=X, y=y):
        while step == 25 and os.path.exists(pause) and not stopped:
            time.sleep(0.01)
        rows = torch.randint(0, len(X_total), (bsz,), generator=gen, device=gen.device)
        inputs = ensure_torch(X_total.to(gen.device)[rows])
        return inputs, inputs[:, 0]
    return batch_fn

def size(model, **kwargs):
    return model.input_layer.weight.abs().mean().item()

{guard}
    args = parse_args()
    args.N_SAMPLES, args.NUM_TRIALS, args.WIDTH, args.MAX_ITER = [8], 2, 8, 60
    args.GAMMA = [0.5, 1]
    X = torch.randn(50, 4, generator=torch.Generator().manual_seed(args.SEED))
    iterators = [args.N_SAMPLES, range(args.NUM_TRIALS), args.GAMMA, [1, 2]]
    names = ["ntrain", "trial", "GAMMA", "DEPTH"]
    global_config = args.__dict__.copy()
    global_config.update(otherreturns={{"size": size}}, DIM=4)
    mp.set_start_method("spawn", force=True)
    bfn_config = dict(base_bfn=pausing_bfn, X_total=X, pause=os.path.abspath("pause"))
    result = run_job_iterator(iterators, names, global_config, bfn_config=bfn_config)
    FileManager("out").save(result, "result.pickle")
    print("jobs", len(result["jobs"]))
"""


def script(folder, guard='if __name__ == "__main__":', name="script.py"):
    path = folder / name
    path.write_text(SCRIPT.format(guard=guard))
    return path


def started(path, *arguments):
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        [sys.executable, path.name, *arguments],
        cwd=path.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.mark.slow
def test_a_script_trains_in_workers(workplace):
    """Even without a ``__main__`` guard, since workers never run the script."""
    path = script(workplace, guard="if True:")
    code, out, err = ended(started(path, "--LR", "0.1"))
    assert code == 0, err
    assert out == "jobs 8\n"
    assert "script done: 8/8 configs  100%" in err
    first = pickle.loads((workplace / "out" / "result.pickle").read_bytes())
    # The second run trains nothing: the same numbers, from the same submission.
    code, out, err = ended(started(path, "--LR", "0.1"))
    assert (code, out) == (0, "jobs 8\n"), err
    second = pickle.loads((workplace / "out" / "result.pickle").read_bytes())
    np.testing.assert_equal(second, first)
    run = open_run("script", workplace / "mlpruns")
    assert run.directory.submissions() == [0]
    assert run.directory.intent(0)["executor"] == "local"
    assert run.directory.plan["packs"] < 8  # several configs train together
    trace = ExptTrace.deserialize(first["losses"])
    assert trace[:, :, :, :].shape == (1, 2, 2, 2)


def wait_until(condition):
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_script_that_is_stopped_goes_on_when_it_is_run_again(workplace, number):
    path = script(workplace)
    (workplace / "pause").touch()
    process = started(path)
    runs = Path(workplace / "mlpruns")

    def training():
        beats = list(runs.glob("script/*/heartbeats/*.json"))
        return beats and all('"pack"' in beat.read_text() for beat in beats)

    wait_until(training)
    process.send_signal(number)
    if number == signal.SIGINT:
        code, _, err = ended(process)
        assert code == 130
        assert "KeyboardInterrupt" not in err
        assert "stopping: workers save their state" in err
        assert "run the script again to continue where it stopped" in err
        assert not open_run("script", runs).status().done
    else:
        process.communicate(timeout=60)
    (workplace / "pause").unlink()  # the workers outlive a script that is killed
    code, out, err = ended(started(path))
    assert (code, out) == (0, "jobs 8\n"), err
    run = open_run("script", runs)
    assert len(list(runs.glob("script/*/sweep.json"))) == 1
    assert run.status().complete
    trained = [pack.name for pack in run.directory.results.packs()]
    assert sorted(trained) == sorted(set(trained))  # nothing twice
