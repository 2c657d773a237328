"""How much memory the GPUs have that tasks will train on, as far as it is known beforehand."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["ASSUMED_MEMORY", "device_name", "free_memory", "memory_of_type"]

#: Bytes of a GPU of which nothing else is known: what the small ones have.
ASSUMED_MEMORY = 8 << 30

#: Seconds that nvidia-smi may take; it wakes up each GPU.
PATIENCE = 30


def free_memory(devices: Sequence[int]) -> int:
    """Return the bytes free on the fullest of some GPUs of this machine.

    The driver's own command is asked: a process that asks CUDA holds memory on every GPU from then
    on, and where a GPU takes one process at a time it would be this one.

    Args:
        devices: the driver's indices.

    Returns:
        :data:`ASSUMED_MEMORY` where the command cannot be had.
    """
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            [*query, f"--id={','.join(map(str, devices))}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return min(int(line) for line in answer.stdout.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return ASSUMED_MEMORY


def memory_of_type(gpu_type: str) -> int:
    """Return the bytes that the name of a type says, as "a100-80gb" and "1g.10gb" do.

    Returns:
        :data:`ASSUMED_MEMORY` where it says none.
    """
    said = re.search(r"(\d+)\s*gi?b\b", gpu_type, re.IGNORECASE)
    return int(said.group(1)) << 30 if said else ASSUMED_MEMORY


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, and ``cpu`` where there is none."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
