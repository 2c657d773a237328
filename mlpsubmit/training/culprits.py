"""The configs of a stack that an exception comes from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import NoReturn

__all__ = ["FAILURES", "raise_attributed", "take_culprits"]

#: The exceptions that are a failure of the configs whose functions raise them: ``sys.exit`` in one
#: is no reason to end the process that trains all others.
FAILURES = (Exception, SystemExit)

#: The attribute of an exception that holds the errors of all configs.
_ATTRIBUTE = "_mlpsubmit_culprits"


def raise_attributed(errors: Mapping[int, BaseException]) -> NoReturn:
    """Raise the first of the errors of some configs, with all of them attached.

    Args:
        errors: by config of the stack. Each would be raised at the same step if the config trained
            alone, unless it has stopped before.
    """
    first = next(iter(errors.values()))
    with contextlib.suppress(AttributeError):  # an exception class may have slots
        setattr(first, _ATTRIBUTE, dict(errors))
    raise first


def take_culprits(error: BaseException) -> dict[int, BaseException]:
    """Return the errors by config that an exception, or one of its causes, was raised with.

    They are detached: an exception that refers to itself would keep the tensors of its frames.

    Returns:
        An empty dictionary if the exception may come from any config of the stack.
    """
    cause: BaseException | None = error
    while cause is not None:
        errors: dict[int, BaseException] = vars(cause).pop(_ATTRIBUTE, {})
        if errors:
            return errors
        cause = cause.__cause__
    return {}
