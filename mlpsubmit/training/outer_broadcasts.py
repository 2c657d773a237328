"""Operations in which a column meets a vector: (n, 1) and (n,) broadcast to (n, n).

A model returns a column of outputs, and many data have a vector of targets. So the mean of
``(model(X_te) - y_te) ** 2`` is one over all pairs of samples, and no error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["OuterBroadcasts"]


class OuterBroadcasts(TorchFunctionMode):
    """Notes whether an operation broadcasts a column with a vector of another tensor.

    A tensor with a view of itself is meant, as in ``x[:, None] - x``.

    Attributes:
        found: the shapes of the first two such operands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = [one for one in args[:2] if isinstance(one, Tensor)]
        if self.found is None and len(operands) == 2 and isinstance(result, Tensor):
            shapes = tuple(operands[0].shape), tuple(operands[1].shape)
            n = len(operands[0]) if operands[0].ndim else 0
            if n > 1 and sorted(shapes) == [(n,), (n, 1)] and result.shape == (n, n):
                self.found = None if _share_memory(*operands) else shapes
        return result


def _share_memory(one: Tensor, other: Tensor) -> bool:
    try:
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # within a transform of torch.func
        return True
