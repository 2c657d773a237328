"""Workers of a task with several: simulated processes, as jobs.workers.Workers starts real ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from virtual_time import Process, current

__all__ = ["VirtualWorkers"]


class VirtualWorkers:
    """The workers of the task that the current process runs; see jobs.workers.Workers."""

    def __init__(self) -> None:
        parent = current()
        assert parent is not None
        self.parent = parent
        self.running: dict[str, Process] = {}

    @classmethod
    @contextlib.contextmanager
    def of_this_process(cls) -> Iterator[VirtualWorkers]:
        workers = cls()
        workers.parent.on_signal = workers.pass_on
        workers.parent.ends.append(workers.end)
        yield workers
        workers.parent.on_signal = None

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        yield

    def pass_on(self) -> None:
        for process in list(self.running.values()):
            self._signal(process)

    def _signal(self, process: Process) -> None:
        """Send SIGTERM, which is held back until the process has its handler."""
        if process.on_signal is None and process.alive:
            self.parent.world.at(0.1, lambda: self._signal(process))
        else:
            process.signal()

    def end(self) -> None:
        """End with the parent, as the kernel has it."""
        for process in list(self.running.values()):
            if process.alive:
                process.kill()

    def start(
        self, name: str, command: Sequence[str], device: str, threads: int, log: Path
    ) -> None:
        world, parent = self.parent.world, self.parent
        path, submission, sweep_hash, index = command[-4:]
        schedule: Any = world.schedule

        def work() -> None:
            schedule._supervised(path, int(submission), sweep_hash, int(index))

        own = f"{parent.name} {name}"
        process = world.start(own, parent.machine, work, user=parent.user)
        process.environment = parent.environment
        process.output = schedule.cluster.appending(str(log), parent.user)
        process.ends.append(lambda: schedule.disk.end_process(process))
        self.running[name] = process

    def wait(self, on_end: Callable[[str, int], None]) -> dict[str, int]:
        codes: dict[str, int] = {}
        while self.running:
            self.parent.world.sleep(0.5)
            for name, process in list(self.running.items()):
                if process.code is not None:
                    del self.running[name]
                    codes[name] = process.code
                    on_end(name, process.code)
        return codes
