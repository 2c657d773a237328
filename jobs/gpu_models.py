"""GPUs by their names: the model, its MIG profile, and how much memory it has at least.

Names are those of SLURM's configuration, which a site chooses (``a100``, ``nvidia_a100-sxm4-80gb``,
``gtx1080ti``, ``a100_3g.20gb``), or of the driver (``NVIDIA A100-SXM4-80GB MIG 3g.40gb``).
"""

from __future__ import annotations

import functools
import re

__all__ = ["is_of_type", "memory_in_name", "model_of", "smallest_memory"]

#: Models, without the vendor's words, by the GiB that the driver shows. Of one that is sold with
#: several the least; of a board with several GPUs, or dies that torch sees apart, of one of them.
_MODELS = {
    3: "1060",
    4: "980",
    5: "k20",
    6: "a2000 980ti 2060",
    8: "m10 m60 4000 1070 1080 2070 2080 3060 3070 4060",
    10: "3080",
    11: "1080ti 2080ti",
    12: "k40 k80 m40 p100 3080ti 4070 5070 titanx titanxp titanv",
    15: "t4 a16",
    16: "v100 5000 a4000 4080 5080 mi50",
    20: "a4500 4000ada",
    23: "a10 l4",
    24: "p40 a30 6000 a5000 a5500 4500ada 3090 4090 titanrtx",
    32: "v100s 5000ada 5090 mi60 mi100",
    40: "a100 a800",
    45: "a40 l20 l40 l40s",
    48: "8000 a6000 6000ada",
    64: "h100 mi210 mi250 mi250x",
    80: "h800",
    96: "h20 gh200 pro6000",
    128: "mi300a",
    141: "h200",
    180: "b200",
    184: "gb200",
    192: "mi300x",
    256: "mi325x",
}
MEMORY = {model: size for size, models in _MODELS.items() for model in models.split()}

_VENDOR = re.compile(r"(nvidia|tesla|geforce|quadro|amd|instinct|radeon|gpu|rtx|gtx) ?")
_SIZE = re.compile(r"(\d+)\s?gi?b?(?![a-z0-9.])", re.IGNORECASE)
_MIG = re.compile(r"(?<!\d)(\d)g\.(\d+)gb", re.IGNORECASE)


@functools.cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """Return what finds each model at the start of a name; the longest come first."""
    found = {}
    for key in sorted(MEMORY, key=len, reverse=True):
        spaced = re.sub(r"(?<=\d)(?=[a-z])|(?<=titan)", " ?", key)
        found[key] = re.compile(spaced + (r"(?!\d)" if key[-1].isdigit() else r"(?![a-z])"))
    return found


def model_of(name: str) -> str:
    """Return the model in a name, as a key of :data:`MEMORY`; empty if it is not known."""
    text = re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()
    while (word := _VENDOR.match(text)) is not None:
        text = text[word.end() :]
    return next((key for key, pattern in _patterns().items() if pattern.match(text)), "")


def memory_in_name(name: str) -> int | None:
    """Return the bytes in a name, such as "a100-80gb" or "1g.10gb"; None if there are none."""
    if model_of(name) == "gh200":
        return None  # that of its CPU
    found = _MIG.search(name)
    size = found[2] if found else next(iter(_SIZE.findall(name)), None)
    return None if size is None else int(size) << 30


def smallest_memory(name: str) -> int | None:
    """Return the bytes of the smallest GPU of the model in a name; None if it is not known."""
    gibibytes = MEMORY.get(model_of(name))
    return None if gibibytes is None else gibibytes << 30


def is_of_type(device: str, gpu_type: str) -> bool:
    """Return whether a GPU with the driver's name for it is of a type as SLURM names it.

    As far as the names say: a size, or the model of a MIG instance, may be left out of one.
    """
    profiles = [found and found[0].lower() for found in map(_MIG.search, (device, gpu_type))]
    models = [model_of(device), model_of(gpu_type)]
    sizes = [memory_in_name(device), memory_in_name(gpu_type)]
    if profiles[0] != profiles[1]:
        return False
    named = all(models) or bool(profiles[0])
    return named and (models[0] == models[1] or not all(models)) and _agree(*sizes)


def _agree(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other
