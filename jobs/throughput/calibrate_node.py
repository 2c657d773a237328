"""A calibration in a job: one process for each worker that a task has, on devices of its own.

Run as ``python -m mlpsubmit.jobs.throughput.calibrate_node FOLDER WORKERS gpus|cores whole|part``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mlpsubmit import files
from mlpsubmit.jobs.command_line import module_command
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.store.run_directory import PLAN
from mlpsubmit.jobs.throughput import calibrate
from mlpsubmit.jobs.workers import Workers, devices

__all__ = ["main"]


def main(folder: Path, workers: int, *, gpus: bool, whole_node: bool) -> None:
    """Train the packs of an order in several processes, and write all of their answers."""
    found = devices(os.environ, whole_node=whole_node) if gpus else [""] * workers
    answers = _errors(workers, found)
    if not answers:
        threads = int(files.read_json(folder / PLAN)["threads"])
        with Workers.of_this_process() as processes:
            for number, device in enumerate(found[:workers]):
                command = module_command(calibrate.__name__, folder, number)
                processes.start(str(number), command, device, threads, None)
            codes = processes.wait(lambda *_: None)
        answers = [_answer(folder, int(number), code) for number, code in sorted(codes.items())]
    files.publish_json(calibrate.answers_file(folder), {"answers": answers})


def _errors(workers: int, found: list[str]) -> list[dict[str, Any]]:
    if len(found) >= workers:
        return []
    return [{"error": f"a task was planned for {workers} GPUs, and its node shows {len(found)}"}]


def _answer(folder: Path, number: int, code: int) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = files.read_json(calibrate.answer_file(folder, number))
    except FileNotFoundError:
        end = ProcessEnd(signal=-code) if code < 0 else ProcessEnd(code=code)
        return {"error": f"its process {end}"}
    return answer


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        gpus=sys.argv[3] == "gpus",
        whole_node=sys.argv[4] == "whole",
    )
