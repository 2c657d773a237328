"""Draws from the global generators, on which a function of a spec must not depend."""

from __future__ import annotations

from collections.abc import Collection

import torch

from mlpsubmit.errors import SpecError
from mlpsubmit.training.seeds import global_states

__all__ = ["draws_error", "watching"]

_CPU = torch.device("cpu")


class watching:  # noqa: N801
    """Notes which global generators are drawn from within the context.

    Args:
        drawn: the names of the generators, by function; they are added.
        name: of the function.
    """

    def __init__(self, drawn: dict[str, set[str]], name: str) -> None:
        self._drawn = drawn.setdefault(name, set())

    def __enter__(self) -> None:
        self._before = global_states(_CPU)

    def __exit__(self, *_: object) -> None:
        after = global_states(_CPU)
        self._drawn |= {name for name, state in after.items() if state != self._before[name]}


def draws_error(name: str, drawn: Collection[str]) -> SpecError:
    """Return the error of a function, as messages call it, that draws from global generators."""
    if name.startswith(("batchfn", "grab")):
        instead = (
            "draw from the argument gen: torch.randn(..., generator=gen), and weights of a module "
            "by nn.init.normal_(..., generator=gen)"
        )
    else:
        instead = "draw from a generator of its own whose state its state_dict() holds, or none"
    return SpecError(
        f"{name} draws from the global generator of {' and '.join(sorted(drawn))}, whose state "
        f"depends on what else has run: trials may see the same draws, and results do not repeat; "
        f"{instead}, or, for NumPy, np.random.default_rng(int(torch.randint(2**31, (), "
        "generator=gen)))"
    )
