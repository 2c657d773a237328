"""What a user can get wrong on a cluster: one message, exit code 2, nothing made or submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import UserError, launch
from mlpsubmit.spec.load import load_spec


def refused(study: Any, **slurm: Any) -> str:
    """Return the message of a launch, having seen that it left nothing behind."""
    with pytest.raises(UserError) as caught:
        study.launch("mistaken", slurm=slurm)
    assert not (study.folder / "runs").exists()
    assert study.cluster.run("squeue", "--noheader", "--format=%j").stdout.count("mistaken") == 0
    return str(caught.value)


@pytest.mark.parametrize(
    ("slurm", "named", "words"),
    [
        ({"partition": "gqu"}, "--partition gqu", "invalid partition specified: gqu"),
        ({"account": "them"}, "--account them", "Invalid account or account/partition"),
        ({"qos": "now"}, "--qos now", "Invalid qos specification"),
        ({"constraint": "slow"}, "--constraint slow", "Invalid feature specification"),
        ({"sbatch": {"foo": "1"}}, "--sbatch foo=1", "unrecognized option"),
    ],
)
def test_the_cluster_refuses(study: Any, slurm: dict[str, Any], named: str, words: str) -> None:
    message = refused(study, **slurm)
    assert named in message
    assert "sbatch rejected it: " in message
    assert words in message
    assert "nothing was submitted" in message


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ({"gpus": 9}, "--gpus: got 9; no node has more than 2 GPUs in the default partition"),
        ({"gpus": 1, "partition": "blind"}, "no node has more than 0 GPUs in partition blind"),
        ({"gpus": 9}, "; to train without: --template cpu"),
        ({"gpus": "a100:1"}, "--gpus: got 1; no node has more than 0 a100 GPUs in the default"),
        ({"cpus": 99}, "--cpus: got 99; no node has more than 8 cores in the default partition"),
        ({"mem": "900G"}, "--mem: got 921600M; no node has more than 8000M in the default"),
        (
            {"time": "9-0"},
            "--time: got 9-00:00:00; the limit of the default partition is 1-00:00:00",
        ),
        ({"cpus": 99, "mem": "900G"}, "2 errors:"),
    ],
)
def test_a_task_that_fits_nowhere(study: Any, slurm: dict[str, Any], message: str) -> None:
    """SLURM would take some of these, and let them wait for good."""
    assert message in refused(study, **slurm)


def test_variables_of_sbatch_do_not_win_over_what_is_asked_for(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "gqu")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    run = study.launch("variables", slurm={"partition": "gpu", "sbatch": {"hold": True}})
    shown = study.cluster.run("squeue", "--noheader", "--format=%P %l", "-j", study.job(run))
    assert shown.stdout.split() == ["gpu", "10:00"]
    run.cancel()
    run.wait()


def test_a_refused_partition_comes_with_those_that_there_are(study: Any) -> None:
    assert (
        "; partitions are blind, far, gpu, main, mixed, preempt, strict, urgent, whole"
        in refused(study, partition="gqu")
    )


def test_a_filter_of_the_site_is_quoted_and_what_it_wants_can_be_given(study: Any) -> None:
    message = refused(study, partition="strict", sbatch={"ntasks": "1"})
    assert "sbatch rejected it: this site wants --account" in message
    run = study.launch("strict", slurm={"partition": "strict", "account": "lab"}, retries=1)
    assert run.wait().complete


def test_the_job_that_would_resume_is_refused_before_anything_is_submitted(study: Any) -> None:
    with pytest.raises(UserError) as caught:
        study.launch("mistaken", slurm={"helper_partition": "gqu"}, retries=1)
    assert str(caught.value).startswith("--partition gqu (template default): sbatch rejected it")
    assert not (study.folder / "runs").exists()


def test_a_path_that_slurm_would_change(study: Any) -> None:
    with pytest.raises(
        UserError, match=r"contains %, which has a meaning for SLURM in the names of logs"
    ):
        study.launch("mistaken", runs_dir=study.folder / "50%")
    assert not (study.folder / "50%").exists()


def test_retries_are_for_slurm(study: Any) -> None:
    with pytest.raises(UserError, match=r"--executor debug: only SLURM takes .*--retries"):
        study.launch("mistaken", executor="debug", tasks=None, retries=1, slurm={})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time", "4x"], "--time: got '4x'; should be"),
        (["--template", "gqu"], "no template is called 'gqu' (did you mean 'gpu'?)"),
        (["--cpus", "none"], "--cpus: got 'none'; should be"),
        (["--executor", "local", "--time", "10"], "--executor local: only SLURM takes --time"),
        (["--sbatch", "array=0-3"], "--sbatch array"),
        (["--partition", "gqu"], "invalid partition specified: gqu"),
    ],
)
def test_on_the_command_line(study: Any, arguments: list[str], message: str) -> None:
    small = ["--gpus", "0", "--mem", "600M"] if "local" not in arguments else []
    done = study.cli("launch", study.spec("mistaken"), *small, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    loaded = "Sweep('mistaken'" in done.stdout
    assert loaded == (arguments[0] in ("--executor", "--partition")), "the spec is not needed"
    assert not (study.folder / "runs").exists()
    dry = study.cli("launch", study.spec("mistaken"), "--dry-run", *small, *arguments)
    assert dry.returncode == 2
    assert message in dry.stderr


def test_a_template_with_errors_lists_them_all(study: Any) -> None:
    own = study.folder / "mine.toml"
    own.write_text('partitoin = "main"\ncpus = 0\ntime = "soon"\n')
    done = study.cli("launch", study.spec("mistaken"), "--template", "./mine.toml")
    assert done.returncode == 2
    assert "3 errors:" in done.stderr
    assert "partitoin: no such key (did you mean 'partition'?)" in done.stderr
    own.write_text('partition = "gqu"\ngpus = 0\nmem = "600M"\n')
    done = study.cli("launch", study.spec("mistaken"), "--template", "./mine.toml")
    assert "--partition gqu (template mine): sbatch rejected it" in done.stderr


def test_without_sbatch(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study.spec("mistaken")
    sweep = load_spec(path)
    monkeypatch.delenv("SLURM_CONF")
    with pytest.raises(UserError, match="this machine has no sbatch configured for a cluster"):
        launch(sweep, executor="slurm", runs_dir=study.folder / "runs")
    monkeypatch.setenv("PATH", str(study.folder))
    with pytest.raises(UserError, match="or train here: --executor local"):
        launch(sweep, executor="slurm", runs_dir=study.folder / "runs")
    assert not (study.folder / "runs").exists()


def test_a_runs_folder_that_the_nodes_cannot_see(study: Any) -> None:
    message = refused(study, partition="far")
    assert "is in /tmp, which is local to each machine; the nodes (elsewhere)" in message
    assert "cannot see it; give a folder that all of them share with --runs-dir" in message


def test_a_folder_that_turns_out_to_be_hidden_from_a_node(study: Any) -> None:
    """It looks like any other from here; then the jobs cannot even write their logs."""
    hidden = study.cluster.folder / "hidden" / "runs"
    run = study.launch("hidden", slurm={"partition": "blind"}, runs_dir=hidden)
    status = run.wait()
    assert status.state == "crashed"
    assert "its node cannot see the run's folder, or cannot write there" in status.tasks[0].why
    assert "mlpsubmit doctor" in status.tasks[0].why
    # Once it lies where all can see it, the rest is as ever.
    seen = Path(run.path).rename(study.folder / "seen")
    moved = study.open(str(seen))
    assert moved.resume(slurm={"partition": "main"}) == 2
    assert moved.wait().complete
