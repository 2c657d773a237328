"""Weights & Biases: a run of it for each config, sent to its server or written into files."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from mlpsubmit.errors import UserError
from mlpsubmit.export.configs import Configs, ExportedConfig
from mlpsubmit.export.names import words
from mlpsubmit.export.record import Record
from mlpsubmit.export.trackers import Options
from mlpsubmit.files import remove_folder, sync_folder

__all__ = ["WandbRuns", "wandb_id"]

PROJECT = "mlpsubmit"
JOB_TYPE = "config"

_MODES = {"online": False, "run": False, "offline": True, "dryrun": True}

#: The most characters of a tag.
_LONGEST_TAG = 64


def wandb_id(sweep: str, key: str) -> str:
    """Return the id of a config's run in W&B: runs of one sweep that share the config share it."""
    return hashlib.blake2b(f"{sweep}/{key}".encode(), digest_size=12).hexdigest()


class WandbRuns:
    """Writes runs of W&B.

    Nothing of this process is recorded beside the config: neither its code, output and git state
    nor its machine, which need not be those of the training.

    Raises:
        UserError: nobody is logged in; the mode of W&B is one in which nothing is written.
    """

    def __init__(self, configs: Configs, folder: Path, options: Options) -> None:
        settings = wandb.setup().settings
        mode = "offline" if options.offline else settings.mode
        if mode not in _MODES:
            raise UserError(
                f"W&B: got the mode {mode!r} (WANDB_MODE, or its settings), in which nothing is "
                "written for each config; valid are online and offline"
            )
        self.offline = _MODES[mode]
        if not (self.offline or wandb.run or wandb.login(prompt=False, verify=False)):
            raise UserError(
                f"W&B: not logged in to {settings.base_url}; run: wandb login, or set "
                "WANDB_API_KEY; or write files with --offline, and send them later"
            )
        self.folder, self._address = folder, settings.base_url
        self._run, self._attributes = configs.run, configs.layout.attributes
        self._project = options.project or settings.project or PROJECT
        self._entity = settings.entity

    @property
    def about(self) -> Mapping[str, Any]:
        """The project, and whether there are files only."""
        mode = "offline" if self.offline else "online"
        return {"project": self._project, "entity": self._entity, "mode": mode}

    @property
    def next_step(self) -> str:
        """Where they are to be seen."""
        if self.offline:
            return f"to send them to W&B: cd {shlex.quote(str(self.folder))} && wandb sync"
        return f"to see them: the group {self._run.name} of the W&B project {self._project}"

    def write(self, config: ExportedConfig) -> None:
        """Write the run of a config.

        Online, what its server has of it is completed: steps only ever grow. Files of an export
        that was not completed are replaced, as are those of a config that had failed.
        """
        own = wandb_id(self._run.name, config.key)
        if self.offline:
            for folder in self.folder.glob(f"wandb/offline-run-*-{own}"):
                remove_folder(folder)
        try:
            run = self._init(own, config)
        except wandb.errors.Error as error:
            why = " ".join(str(error).split())
            raise UserError(
                f"W&B: {why} (server: {self._address}); the same command goes on from there, "
                "or write files with --offline, into another --out"
            ) from None
        finished = False
        try:
            self._log(run, config)
            run.finish(exit_code=int(config.status == "failed"))
            finished = True
        finally:
            if not finished:  # interrupted: the next export replaces or completes it
                run.finish(exit_code=255)
        if self.offline:
            stored = Path(run.settings.sync_dir)
            for path in (*stored.glob("*.wandb"), stored, stored.parent):
                sync_folder(path)

    def _init(self, own: str, config: ExportedConfig) -> Any:
        name = words([*config.axes, *config.settings])
        settings = {
            name[key]: value for key, value in (*config.axes.items(), *config.settings.items())
        }
        origin = {"key": config.key, "index": config.index, **self._attributes}
        return wandb.init(
            project=self._project,
            entity=self._entity,
            id=own,
            resume="allow",
            name=config.label,
            group=self._run.name,
            job_type=JOB_TYPE,
            tags=self._tags(config),
            notes=config.failure or None,
            config={**settings, "mlpsubmit": origin},
            allow_val_change=True,
            dir=self.folder,
            mode="offline" if self.offline else "online",
            reinit="create_new",  # this process may have a run of its own
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                host="",
                save_code=False,
                silent=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def _tags(self, config: ExportedConfig) -> tuple[str, ...]:
        return config.status, self._run.id[-_LONGEST_TAG:]

    def _log(self, run: Any, config: ExportedConfig) -> None:
        word = words(config.names)
        run.tags = self._tags(config)  # not those of an earlier attempt
        for step, found in config.by_step():
            if found and step >= run.starting_step:
                run.log({word[name]: value for name, value in found.items()}, step=step)
        run.summary.update({word[name]: value for name, value in config.numbers.items()})
        run.summary["status"] = config.status
        if config.error or run.resumed:
            run.summary["error"] = config.error or None

    def end_pass(self, record: Record) -> None:
        """Nothing is about all configs together."""
