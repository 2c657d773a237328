"""This machine's CPU: its model, and the instructions that code compiled for it may use."""

from __future__ import annotations

import functools
import platform
from hashlib import blake2b
from pathlib import Path

__all__ = ["cpu_name", "machine_digest"]


def _cpu_info() -> dict[str, str]:
    """Return the kernel's description of the first CPU, by field; empty if it has none."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


@functools.cache
def cpu_name() -> str:
    """Return the CPU's model name."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def machine_digest(*further: str) -> str:
    """Return what tells machines apart that cannot run each other's compiled code.

    Args:
        further: what else that code depends on.
    """
    info = _cpu_info()
    parts = [platform.machine(), cpu_name(), info.get("flags", ""), info.get("Features", "")]
    return blake2b(repr([*parts, *further]).encode(), digest_size=8).hexdigest()
