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
    """Notes whether an operation broadcasts targets with a tensor that is none of them.

    Pairs of the targets themselves are meant, as in ``y[:, None] - y``.

    Args:
        targets: y_tr and y_te.

    Attributes:
        found: the shapes of the first two such operands.
    """

    def __init__(self, *targets: Tensor | None) -> None:
        super().__init__()
        self._targets = {_memory(y) for y in targets if y is not None}
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
                of_targets = [_memory(one) in self._targets for one in operands]
                self.found = shapes if of_targets.count(True) == 1 else None
        return result


def _memory(tensor: Tensor) -> int:
    """Return where a tensor is in memory; 0 within a transform of torch.func."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
