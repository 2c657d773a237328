"""Real users of one machine: processes of this one that have become another user."""

from __future__ import annotations

import ctypes
import grp
import os
import pickle
import pwd
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NEW_NAMESPACE = 0x00020000

#: What the processes of all users need.
NEEDED = Path(sys.base_prefix, "lib"), Path(sys.prefix, "lib"), Path(__file__)

#: Users that every Debian has, and a group of which the first three are made members.
ALICE, BOB, CAROL, OUTSIDER = "games", "news", "man", "lp"
GROUP = "users"

SPEC = """
import os
from pathlib import Path
import torch
from mlpsubmit import Sweep

def products(bsz, gen, scale, X=None, y=None):
    def batch_fn(step):
        if step > 20 and Path("stop").exists():
            raise ValueError("stopped by the test")
        inputs = torch.randn(bsz, 4, generator=gen)
        return inputs, scale * inputs[:, 0]
    return batch_fn

def entries():
    Path(f"FOLDER/computed-{os.getuid()}").touch()
    return {"scale": torch.ones(1)}

sweep = Sweep(
    "study", axes={"WIDTH": [8, 16]}, data=entries, batchfn=products, N_SAMPLES=16, MAX_ITER=60,
    LOSS_CHECKPOINTS=[1e-12], CHECKPOINT_MINUTES=0.0001,
)
"""


def let_all_read(*paths: Path) -> None:
    """Let every user reach what lies in folders that are closed to them, in this process only.

    Such as a Python in the home of root, where pyenv installs it: what is in that home is mounted
    in an open folder over it.
    """
    closed = {
        folder
        for path in paths
        for folder in path.resolve().parents
        if not folder.stat().st_mode & 0o001
    }
    if not closed:
        return
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")
    run = lambda *words: subprocess.run([str(word) for word in words], check=True)  # noqa: E731
    run("mount", "--make-rprivate", "/")
    for folder in sorted(closed):
        held = Path(tempfile.mkdtemp())
        run("mount", "--rbind", folder, held)
        run("mount", "-t", "tmpfs", "-o", "mode=755", "none", folder)
        for entry in held.iterdir():
            place = folder / entry.name
            if entry.is_symlink():
                place.symlink_to(entry.readlink())
                continue
            place.mkdir() if entry.is_dir() else place.touch()
            run("mount", "--rbind", entry, place)
        run("umount", "--lazy", held)
        held.rmdir()


def become(name: str, *, member: bool, umask: int) -> None:
    """Turn this process into one of a user, who is a member of the group, or not."""
    let_all_read(*NEEDED)
    user, gid = pwd.getpwnam(name), grp.getgrnam(GROUP).gr_gid
    os.setgroups([user.pw_gid, gid] if member else [user.pw_gid])
    os.setresgid(*[user.pw_gid] * 3)
    os.setresuid(*[user.pw_uid] * 3)
    os.umask(umask)


class People:
    """Users who share a folder.

    Attributes:
        folder: everybody may write there, and remove what is theirs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(
        self, user: str, function: Callable[[], Any], *, umask: int = 0o077, member: bool = True
    ) -> Any:
        """Return what a function returns in a process of a user; what it raises is raised here."""
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(ours)
                answer: Any = self._in_child(user, function, umask, member)
            except BaseException as error:
                traceback.print_exc()
                answer = error
            with os.fdopen(theirs, "wb") as pipe:
                pipe.write(pickle.dumps(answer))
            os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            answer = pickle.loads(pipe.read())
        os.waitpid(child, 0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _in_child(self, user: str, function: Callable[[], Any], umask: int, member: bool) -> Any:
        import torch

        torch.set_num_threads(1)  # threads do not survive a fork
        home = self.folder / f"home-{user}"
        if not home.exists():
            home.mkdir()
            shutil.chown(home, user)
        become(user, member=member, umask=umask)
        os.environ |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "CC": "/none"}
        os.chdir(home)
        warnings.simplefilter("default")  # as for a user
        return function()

    def cli(self, user: str, *arguments: Any, **how: Any) -> Any:
        """Return the exit code and the output of a command of a user."""
        return self.do(user, lambda: self._command(arguments), **how)

    def _command(self, arguments: tuple[Any, ...]) -> tuple[int, str]:
        from mlpsubmit.cli.main import main

        words = [*map(str, arguments)]
        with tempfile.TemporaryFile("w+") as output:
            for descriptor in (1, 2):
                os.dup2(output.fileno(), descriptor)
            sys.stdout = sys.stderr = os.fdopen(1, "w")
            sys.argv = ["mlpsubmit", *words]
            os.environ["MLPSUBMIT_RUNS"] = str(self.folder / "runs")
            code = 0
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
            sys.stdout.flush()
            output.seek(0)
            return code, output.read()

    def launch(self, user: str, *arguments: str, **how: Any) -> tuple[int, str]:
        """Launch the study as a user, in the process of the command."""
        own = ("--executor", "debug", "--group", GROUP, *arguments)
        return self.cli(user, "launch", self.folder / "study.py", *own, **how)

    @property
    def run(self) -> Path:
        """The folder of the only run."""
        (found,) = (self.folder / "runs/study").glob("[!.]*")
        return found


if __name__ == "__main__":  # a command, such as a slurmd whose jobs may be those of any user
    let_all_read(*NEEDED)
    os.execvp(sys.argv[1], sys.argv[1:])
