"""When a process collects garbage: not while it imports torch.

That creates 260,000 objects, which stay. Python examines them again and again meanwhile, which
takes a seventh of the time of the import, and would do so once in a while ever after.
"""

from __future__ import annotations

import gc

__all__ = ["postpone_collection", "resume_collection"]

#: More objects than torch creates. Not infinitely many: a spec's own code runs meanwhile.
_OBJECTS = 400_000

_usual: list[tuple[int, int, int]] = []


def postpone_collection() -> None:
    """Collect no garbage of this process until it has many objects, or resumes."""
    _usual.append(gc.get_threshold())
    gc.set_threshold(_OBJECTS)


def resume_collection() -> None:
    """Collect garbage again, if it was postponed: of what is created from now on."""
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())
