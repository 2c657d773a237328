"""The GPUs of tasks: which are visible, and how much memory they have, as far as known beforehand.

The launching process must not initialise CUDA: it would hold memory on every GPU from then on, and
a GPU in exclusive mode would serve no other process. So NVML, the driver's own library,
is queried. It does not apply CUDA_VISIBLE_DEVICES; entries of that variable are matched here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pynvml

from mlpsubmit.display.text import counted

if TYPE_CHECKING:
    import torch

__all__ = [
    "ASSUMED_MEMORY",
    "all_devices",
    "device_memory",
    "device_name",
    "free_memory",
    "gpu_names",
    "listed_devices",
    "missing_gpu",
    "task_device",
    "uuids",
    "visible_entries",
]

#: Bytes of a GPU of which nothing else is known: the memory of a small one.
ASSUMED_MEMORY = 8 << 30


def visible_entries(devices: Sequence[int], visible: str) -> list[str]:
    """Return GPUs as entries of CUDA_VISIBLE_DEVICES for processes that should see these alone.

    Args:
        devices: indices among the GPUs that this process sees.
        visible: the value of CUDA_VISIBLE_DEVICES here, indices or UUIDs; empty if all are visible.
    """
    entries = [entry.strip() for entry in visible.split(",")] if visible else None
    return [str(index) if entries is None else entries[index] for index in devices]


def listed_devices(visible: str) -> list[str]:
    """Return the devices in a value of CUDA_VISIBLE_DEVICES.

    They are indices, UUIDs of GPUs or of MIG instances. CUDA ignores what follows an entry that is
    none, such as SLURM's NoDevFiles.
    """
    found: dict[str, None] = {}
    for entry in map(str.strip, visible.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-\S+", entry):
            break
        found[entry] = None
    return list(found)


def all_devices() -> list[str]:
    """Return every GPU of this machine, by UUID; for one that is divided, its MIG instances.

    A process of CUDA sees one MIG instance at most, so each is a device of its own. Empty if no
    driver answers.
    """
    try:
        with _driver():
            count = int(pynvml.nvmlDeviceGetCount())
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            parts = [part for handle in handles for part in _instances(handle) or [handle]]
            return [str(pynvml.nvmlDeviceGetUUID(part)) for part in parts]
    except pynvml.NVMLError:
        return []


@contextlib.contextmanager
def _driver() -> Iterator[None]:
    """Let the driver be asked, by NVML, in the block.

    Raises:
        pynvml.NVMLError: none answers.
    """
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _instances(handle: Any) -> list[Any]:
    """Return the MIG instances of a GPU; none if it is not divided."""
    found = []
    try:
        for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError):  # numbers may be left out
                found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
    except pynvml.NVMLError:
        return []  # an older GPU
    return found


def uuids(indices: Sequence[int]) -> list[str]:
    """Return entries of CUDA_VISIBLE_DEVICES for GPUs by the driver's indices.

    CUDA may number GPUs by speed, and the driver by their place: so by UUID, where it says that.
    """
    try:
        with _driver():
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in indices]
            return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except pynvml.NVMLError:
        return [str(index) for index in indices]


def free_memory(entries: Sequence[str | int]) -> int:
    """Return the free bytes on the fullest of some GPUs of this machine.

    Args:
        entries: entries of CUDA_VISIBLE_DEVICES: indices, or UUIDs of GPUs (also abbreviated) or of
            MIG instances.

    Returns:
        :data:`ASSUMED_MEMORY` if there is no driver, or it does not know one of them.
    """
    try:
        with _driver():
            handles = [_handle(str(entry)) for entry in entries]
            return min(int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles)
    except pynvml.NVMLError:
        return ASSUMED_MEMORY


def gpu_names(entries: Sequence[str | int]) -> list[str]:
    """Return the driver's names of some GPUs of this machine; empty if it does not say them all.

    Args:
        entries: as :func:`free_memory` takes them.
    """
    try:
        with _driver():
            return [str(pynvml.nvmlDeviceGetName(_handle(str(entry)))) for entry in entries]
    except pynvml.NVMLError:
        return []


def _handle(entry: str) -> Any:
    """Return NVML's handle of a GPU.

    Raises:
        pynvml.NVMLError: if there is none.
    """
    if entry.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(entry))
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if pynvml.nvmlDeviceGetUUID(handle).startswith(entry):
            return handle
    return pynvml.nvmlDeviceGetHandleByUUID(entry)


def task_device() -> torch.device:
    """Return the device that this process trains on: its first visible GPU, or the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def missing_gpu() -> str:
    """Return why a task that was given a GPU cannot train on it, as far as can be seen."""
    import torch

    cuda = torch.version.cuda
    build = f"is built for CUDA {cuda}" if cuda else "is a build without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        f"this task should have a GPU, and torch sees none: torch {torch.__version__} {build}; "
        f"{_driver_text()}; CUDA_VISIBLE_DEVICES is "
        f"{'not set' if visible is None else repr(visible)}; install a build of torch for that "
        "driver, check the node with nvidia-smi, or train on CPUs: --template cpu on a cluster, "
        "else DEVICES=[]"
    )


def _driver_text() -> str:
    try:
        with _driver():
            count = pynvml.nvmlDeviceGetCount()
            return f"driver {pynvml.nvmlSystemGetDriverVersion()} has {counted(count, 'GPU')}"
    except pynvml.NVMLError as error:
        return f"no driver answers ({error})"


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or ``cpu``."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def device_memory(device: torch.device) -> int | None:
    """Return the bytes of a GPU, used or free; None for the CPU."""
    import torch

    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)
