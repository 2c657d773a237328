"""A launch on this machine from within a job, on a cluster that binds nobody to its cores."""

from __future__ import annotations

import json
from typing import Any

ASKED = ("--cpus-per-task=1", "--mem=700M")
LAUNCH = ("launch", "--executor", "local", "--dry-run", "--json")


def test_a_launch_uses_the_cores_that_its_job_has(study: Any) -> None:
    path = study.spec("inside")
    done = study.cluster.run("srun", *ASKED, study.command, *LAUNCH, path)
    shown = json.loads(done.stdout)
    assert (shown["executor"], shown["threads"], len(shown["tasks"])) == ("local", 1, 1)


def test_a_shell_of_salloc_has_no_more(study: Any) -> None:
    launch = (study.command, *LAUNCH, study.spec("inside"), "--tasks", "2")
    done = study.cluster.run("salloc", "--quiet", *ASKED, *launch, check=False)
    assert done.returncode == 2
    assert "in which this is launched, has 1 core, and each task needs one" in done.stderr
