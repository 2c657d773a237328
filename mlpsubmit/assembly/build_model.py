"""Build the model of one config."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mlpsubmit.arguments import call, function_name, further_arguments
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import LOSS_PARAMS
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.sweep import Config
from mlpsubmit.training.global_state import global_state_kept
from mlpsubmit.training.models import MLP
from mlpsubmit.training.precision import default_dtype, dtype_of
from mlpsubmit.training.seeds import weights_rng

__all__ = ["bound", "build_model"]


def build_model(config: Config, context: Mapping[str, Any], X: Tensor, y: Tensor) -> nn.Module:
    """Build the model of one config for batches of the shapes of X (n, ...) and y.

    MODEL gets the arguments that it declares: ``d_in`` (entries of one sample), ``input_shape``,
    ``d_out`` and every setting of the config.

    Raises:
        SpecError: where it returns no module, one without shapes, or one that it has returned
            before; or where y does not determine d_out.
    """
    hyperparameters = config.hyperparameters
    factory = MLP if hyperparameters.model == "mlp" else hyperparameters.model
    shape = tuple(X.shape[1:])
    sizes = {"d_in": X[0].numel(), "input_shape": shape, "d_out": _outputs(hyperparameters, y)}
    dtype = dtype_of(hyperparameters.precision)

    def build() -> Any:
        with weights_rng(hyperparameters.seed, config.trial), default_dtype(dtype):
            model = call(factory, {**context, **sizes})
        # Of torch.compile: COMPILE chooses what is fast.
        return getattr(model, "_orig_mod", model)

    model = build()
    if not isinstance(model, nn.Module):
        raise SpecError(
            f"MODEL {function_name(factory)}: returned {type(model).__name__}; should be an "
            "nn.Module"
        )
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise SpecError(
            f"MODEL {function_name(factory)}: its parameter {lazy[0]} has no shape before the "
            "first batch (a lazy module); give the module its sizes, from d_in or input_shape"
        )
    if factory is not MLP:
        _check_new(factory, model, build)
    return model


#: Functions that are known to return a new model each time.
_MAKES_NEW: WeakSet[Callable[..., Any]] = WeakSet()


def _check_new(
    factory: Callable[..., Any], model: nn.Module, build: Callable[[], nn.Module]
) -> None:
    """Refuse a MODEL that returns what it holds: configs would train the same tensors.

    Raises:
        SpecError: naming what it returns again.
    """
    with contextlib.suppress(TypeError):  # of an object that has no hash
        if factory in _MAKES_NEW:
            return
    with global_state_kept():
        again = build()
    known = {tensor.untyped_storage()._cdata for _, tensor in _changing(model, again)}
    for name, tensor in _changing(again, model):
        if tensor.numel() and tensor.untyped_storage()._cdata in known:
            raise SpecError(
                f"MODEL {function_name(factory)}: returns the same {name} each time that it is "
                "called, and configs would go on where others ended; return a copy: "
                "copy.deepcopy(module), or tensor.clone() for a parameter"
            )
    with contextlib.suppress(TypeError):  # or no weak references
        _MAKES_NEW.add(factory)


def _changing(model: nn.Module, other: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what training changes: parameters, and buffers of modules that another model has, too.

    Buffers of a module of its own may be constants that all models share.
    """
    yield from ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    common = {*model.modules()} & {*other.modules()}
    for prefix, module in model.named_modules():
        if module in common and module.training:
            yield from module.named_buffers(prefix, recurse=False)


def bound(
    function: Any, given: Mapping[str, Any], context: Mapping[str, Any], first: int = 2
) -> Any:
    """Bind the arguments that a PARAMETRIZATION or another setting declares after its first ones.

    Args:
        function: a name is returned as it is.
        given: the axes and arguments of the spec, which take the place of defaults too.
        context: everything that is offered by name, for arguments without a default.
        first: how many arguments it gets by position.
    """
    if not callable(function):
        return function
    own = {name: value for name, value in given.items() if name not in Hyperparameters.model_fields}
    offered = {
        name: (p.default is p.empty) for name, p in further_arguments(function, first).items()
    }
    taken = {
        name: own[name] if name in own else context[name]
        for name, needed in offered.items()
        if name != LOSS_PARAMS and (name in own or (needed and name in context))
    }
    return functools.partial(function, **taken) if taken else function


def _outputs(hyperparameters: Hyperparameters, y: Tensor) -> int:
    if hyperparameters.d_out is not None:
        return hyperparameters.d_out
    if y.ndim == 2:
        return int(y.shape[1])
    if hyperparameters.loss == "cross_entropy":
        raise SpecError(
            "D_OUT: not set, and LOSS='cross_entropy' with class labels y (n,) does not say how "
            "many classes there are; set D_OUT to their number"
        )
    return 1
