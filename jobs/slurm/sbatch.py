"""Handing scripts to sbatch, so that it is known whether the cluster has them."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mlpsubmit import files
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm.commands import CommandResult, SlurmUnavailable, ask
from mlpsubmit.jobs.slurm.queue import Queue
from mlpsubmit.jobs.slurm.rejections import is_uncertain, refusal
from mlpsubmit.slurm_templates import Template

__all__ = ["Sbatch", "Uncertain", "cancel"]

#: sbatch itself tries again for as long as its controller may take under load.
SUBMIT_SECONDS = 60.0

#: A simulated start, which needs the whole queue; where it takes longer, it is done without.
CHECK_SECONDS = 10.0

#: How often, and how many seconds apart, a job is looked for that sbatch did not answer for.
_LOOKS = 3
_BETWEEN_LOOKS = 2.0


#: Those that are not called by the name of their option.
_VARIABLES = {
    "array": "SBATCH_ARRAY_INX",
    "mem": "SBATCH_MEM_PER_NODE",
    "requeue": "SBATCH_NO_REQUEUE",
    "time": "SBATCH_TIMELIMIT",
}

#: Options that exclude or add to each other, so that one that is given stands for all.
_TOGETHER = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"gpus-per-node", "gpus", "gpus-per-task", "gpus-per-socket", "gres", "cpus-per-gpu"},
)

#: What no user means for these jobs: another cluster, an array of another size, to wait here.
_NEVER = {"SBATCH_ARRAY_INX", "SBATCH_CLUSTERS", "SBATCH_DEBUG", "SBATCH_WAIT"}

_NO_NODES = "node configuration is not available"


class Uncertain(UserError):
    """Nobody can say whether the cluster has a job."""


class Sbatch:
    """Submits scripts that a template was made into."""

    def __init__(self, template: Template) -> None:
        self._template = template

    def check(self, script: str) -> str:
        """Let sbatch say whether it would take a script, which it does not keep.

        It tests as if the job were to start, so it also refuses what waits for nodes that are down;
        then the submission itself tells.

        Returns:
            What it says of when and where; empty where it says nothing.

        Raises:
            Refused: where it would not.
        """
        with TemporaryDirectory() as folder:
            file = Path(folder) / "check.sh"
            file.write_text(script)
            command = ("sbatch", "--test-only", str(file))
            try:
                answer = ask(*command, seconds=CHECK_SECONDS, unset=overriding(script))
            except SlurmUnavailable:
                return ""  # the submission itself says so, if it cannot be made either
        if answer.code == 0:
            return answer.out + answer.err
        if is_uncertain(answer) or _NO_NODES in answer.err:
            return ""
        raise self._refusal(answer)

    def submit(self, file: Path, script: str, name: str) -> str:
        """Write a script and submit it; return the id of its job.

        Where sbatch does not say what became of it, the job is looked for by its name.

        Raises:
            Refused: where the cluster does not take it.
            Uncertain: where it cannot be found out whether it did.
        """
        files.publish(file, script.encode())
        command = ("sbatch", "--parsable", str(file))
        unset = overriding(script)
        try:
            answer = ask(*command, seconds=SUBMIT_SECONDS, keep_locks=True, unset=unset)
        except SlurmUnavailable as error:
            return self._found(name, str(error))
        told = re.fullmatch(r"(\d+)", answer.out.strip())
        if answer.code == 0 and told:
            return told[1]
        if answer.code == 0:
            return self._found(name, f"sbatch answered {answer.out.strip()[:200]!r}, not a job id")
        if is_uncertain(answer):
            return self._found(name, answer.err.strip())
        raise self._refusal(answer)

    def _refusal(self, answer: CommandResult) -> UserError:
        return refusal(answer, self._template.to_json(), self._template.name)

    def _found(self, name: str, why: str) -> str:
        """Look for a job that sbatch did not answer for."""
        for look in range(_LOOKS):
            time.sleep(_BETWEEN_LOOKS if look else 0)
            queue = Queue.look([name])
            if queue.ids.get(name):
                return queue.ids[name][-1]
        if queue.silence:
            why += f"; and the queue cannot be asked: {queue.silence}"
        raise Uncertain(
            f"{why}; no job of this run is known to be queued, and one that starts after all will "
            "end at once; when the cluster answers again (mlpsubmit doctor), go on with: "
            "mlpsubmit resume"
        )

    def withdraw(self, ids: Sequence[str]) -> None:
        """Take back jobs whose submission as a whole has failed; those that start end at once."""
        with contextlib.suppress(SlurmUnavailable):
            cancel(ids)


def overriding(script: str) -> set[str]:
    """Return the variables that would win, with sbatch, over what a script says itself."""
    names = set(re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE))
    for group in _TOGETHER:
        names |= group if names & group else set()
    own = {_VARIABLES.get(name, f"SBATCH_{name.replace('-', '_').upper()}") for name in names}
    return own | _NEVER


def cancel(ids: Sequence[str]) -> None:
    """Tell SLURM to end jobs; those that run are asked to save first.

    Raises:
        SlurmUnavailable: where it cannot be told.
    """
    if not ids:
        return
    answer = ask("scancel", *ids)
    if answer.code != 0 and "invalid job id" not in answer.err.lower():
        raise SlurmUnavailable(f"scancel: {answer.err.strip() or f'exit code {answer.code}'}")
