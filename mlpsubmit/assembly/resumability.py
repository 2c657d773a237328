"""Find functions of the user's that keep state which no checkpoint holds.

Batch functions are checked by :mod:`mlpsubmit.assembly.repeatable_batches`. For all others, an
interrupted and resumed training has to equal an undisturbed one. So a few steps are made both
ways, and all that the user's functions hold afterwards is compared, with the weights, losses and
batches. The resumed one runs second in the same process: what an earlier training has left in
globals may not matter either.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mlpsubmit.arguments import function_name
from mlpsubmit.assembly.assemble import StackInputs, assemble, named_grabs
from mlpsubmit.assembly.global_draws import draws_error, watching
from mlpsubmit.assembly.held_state import Held, closure_of, difference, held, keeps_state
from mlpsubmit.assembly.repeatable_batches import HINT, check_batches
from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.spec.hyperparameters import OPTIMIZERS
from mlpsubmit.spec.libraries import is_library
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.culprits import FAILURES
from mlpsubmit.training.global_state import global_state_kept
from mlpsubmit.training.monitor import Monitor
from mlpsubmit.training.optimizers.torch_optimizer import optimizer_class

__all__ = ["check_resumable", "own_functions"]

#: Steps of the undisturbed training, and those after which the other one is interrupted.
_STEPS, _SAVED_AFTER = 4, 2

#: The name under which the draws of the model itself are noted.
_MODEL = "MODEL"

#: Samples per batch, where the functions can do with so few.
_SAMPLES = 32

#: By the kind of a function, where it is to keep what it needs.
_HINTS = {
    "OPTIMIZER": "keep it in self.state or param_groups, or return it from state_dict() and set it "
    "in load_state_dict()",
    "MODEL": "make it a buffer: self.register_buffer(name, tensor), changed in place; random "
    "numbers need no generator: torch.randn_like(h) draws from the config's own stream",
    "LOSS": "compute the loss from its arguments alone",
    "LR_SCHEDULE": "compute the factor from the step alone",
    "METRICS": "compute the metric from its arguments alone",
    "batchfn": HINT,
    "grab": "compute it from its arguments; model0 is the network at initialisation",
    "PARAMETRIZATION": "compute it from its arguments",
}


def check_resumable(
    sweep: Sweep,
    config: Config,
    entry: Mapping[str, Any],
    device: torch.device,
    grabs: Collection[str] = (),
) -> None:
    """Train a few steps of a config, undisturbed and interrupted, and compare.

    Args:
        entry: the entries of the data function, tensors on the device.
        grabs: those to call, too.

    Raises:
        SpecError: naming the function, what it keeps, and where to keep it.
        WriteError: where a batch function changes what it has returned before.
    """
    own = own_functions(sweep, config, grabs)
    if not own:
        return
    settings = config.hyperparameters
    few = {name: min(getattr(settings, name), _SAMPLES) for name in ("n_samples", "n_test")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at these sizes more threads only wait for each other
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a training gives the same ones
            try:
                _check(sweep, config.replaced(**few), entry, device, own)
            except FAILURES:  # perhaps from a function that needs more samples
                _check(sweep, config, entry, device, own)
    finally:
        torch.set_num_threads(threads)


def own_functions(sweep: Sweep, config: Config, grabs: Collection[str]) -> dict[str, Any]:
    """Return the functions of a config that are not the library's, by how messages call them."""
    settings, named = config.hyperparameters, named_grabs(sweep)
    functions = {"batchfn": sweep.batchfn, "PARAMETRIZATION": settings.parametrization}
    functions |= {"MODEL": settings.model, "LOSS": settings.loss}
    functions["LR_SCHEDULE"] = settings.lr_schedule
    measured = settings.measured.items()
    functions |= {f"METRICS {name!r}": metric.function for name, metric in measured}
    own = {f"{k} {function_name(f)}": f for k, f in functions.items() if _is_own(f)}
    own |= {f"grab {name!r}": named[name] for name in grabs if _is_own(named[name])}
    if settings.optimizer not in OPTIMIZERS:
        cls = optimizer_class(settings.optimizer)
        own[f"OPTIMIZER {function_name(cls)}"] = cls
    return own


def _is_own(function: Any, depth: int = 5) -> bool:
    """Return whether a function, or one that it calls for its user, is no library's."""
    if not callable(function) or depth == 0:
        return False
    inner = function if hasattr(function, "__qualname__") else type(function)
    if not is_library(inner.__module__ or ""):
        return True
    inside = [getattr(function, name, None) for name in ("func", "__wrapped__", "__self__")]
    if isinstance(function, functools.partial):
        inside += [*function.args, *function.keywords.values()]
    return any(_is_own(part, depth - 1) for part in [*inside, *closure_of(function).values()])


def _check(
    sweep: Sweep,
    config: Config,
    entry: Mapping[str, Any],
    device: torch.device,
    own: Mapping[str, Any],
) -> None:
    name = f"batchfn {function_name(sweep.batchfn)}"
    if name in own:
        check_batches(sweep, config, entry, device, name)
    if own.keys() <= {name}:
        return
    straight, saver = _Run(own), _Saver()
    straight.train(sweep, config, entry, device, saver)
    straight.check_draws()
    resumed = _Run(own)
    try:
        resumed.train(sweep, config, entry, device, _Saver(saver.saved))
    except UserError:
        raise
    except Exception as error:
        raise SpecError(
            f"{' or '.join(own)}: a training that is resumed from a checkpoint raises "
            f"{type(error).__name__}: {error}"
        ) from error
    straight.compare(resumed)


# ---- the training --------------------------------------------------------------------------------


class _Saver(Monitor):
    """Saves the state once, as a checkpoint does; or restores a saved one."""

    def __init__(self, saved: bytes | None = None) -> None:
        self.saved, self._restored = saved, saved

    def restore(self) -> dict[str, Any] | None:
        if self._restored is None:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(self._restored), weights_only=True)
        return state

    def due(self, step: int) -> bool:
        return self._restored is None and step + 1 == _SAVED_AFTER

    def save(self, state: dict[str, Any]) -> None:
        stream = io.BytesIO()
        torch.save(state, stream)
        self.saved = stream.getvalue()


@dataclass
class _Run:
    """A short training of one config.

    Attributes:
        own: the user's functions, by how messages call them.
        held: what each of them holds at the end, object by object.
        results: what the training has computed, by name.
        drawn: per function, the global generators that it has drawn from; "" of all.
    """

    own: Mapping[str, Any]
    held: dict[str, list[Held]] = field(default_factory=dict)
    results: dict[str, Held] = field(default_factory=dict)
    drawn: dict[str, set[str]] = field(default_factory=dict)

    def train(
        self,
        sweep: Sweep,
        config: Config,
        entry: Mapping[str, Any],
        device: torch.device,
        saver: _Saver,
    ) -> None:
        """Make the steps, and read what the functions hold."""
        optimizers: list[Any] = []
        short: dict[str, Any] = {
            "max_iter": _STEPS,
            "compile": "auto",
            "onlythresholds": False,
            "grab_every": _STEPS - 1,
            "loss_checkpoints": (),
            "percent_thresholds": None,
            "stop_on": None,
        }
        if config.hyperparameters.optimizer not in OPTIMIZERS:
            cls = optimizer_class(config.hyperparameters.optimizer)
            short["optimizer"] = _keeping(cls, optimizers)
        # What is drawn in training is the config's own: this finds the draws of functions that make
        # something.
        with torch.random.fork_rng(devices=[]), watching(self.drawn, ""):
            (stack,) = assemble(sweep, [config.replaced(**short)], [entry], device)
            stack.grabs = {
                name: self._watched(grab, f"grab {name!r}")
                for name, grab in stack.grabs.items()
                if f"grab {name!r}" in self.own
            }
            trained = stack.train(saver)
        self._read(stack, optimizers)
        if any(drawn for name, drawn in self.drawn.items() if name.startswith("grab")):
            self._watch_model(stack)
        self.results = {
            "its weights": held(stack.models[0].state_dict()),
            "its losses": held([trained.train_loss[:, -1], trained.test_loss[:, -1:]]),
            "its metrics": held({n: values[:, -1] for n, values in trained.metrics.items()}),
            "the generators of its batches": held(stack.generators),
        }
        grabs: dict[str, list[Any]] = {}
        for name, values in trained.grabs.items():
            grab, _ = trained.entries.get(name, (name, None))
            grabs.setdefault(grab, []).append(values[:, -1])
        self.results |= {f"grab {name!r}": held(values) for name, values in grabs.items()}

    def _watched(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with watching(self.drawn, name):
                return function(*args, **kwargs)

        return watched

    def _watch_model(self, stack: StackInputs) -> None:
        """Find out which generators the model draws from, in training mode and in eval mode."""
        X, _ = stack.batch_fns[0](_STEPS)
        model = copy.deepcopy(stack.models[0])
        with global_state_kept(), watching(self.drawn, _MODEL), contextlib.suppress(Exception):
            for mode in (True, False):
                model.train(mode)(torch.as_tensor(X).to(stack.device))

    def _read(self, stack: StackInputs, optimizers: list[Any]) -> None:
        for name, function in self.own.items():
            # Functions that make these are called anew; what they leave behind shows in results.
            made = {"OPTIMIZER": optimizers, "MODEL": stack.models}
            objects = made.get(name.partition(" ")[0], [function])
            if not name.startswith(("batchfn", "PARAMETRIZATION")):
                self.held[name] = [held(one) for one in objects]

    def check_draws(self) -> None:
        """Refuse draws from global generators where these do not hold the config's own stream.

        They do for the forward passes of a training, and for grabs that call a model that draws.
        """
        everything, model = self.drawn.pop("", set()), self.drawn.pop(_MODEL, set())
        for name, drawn in self.drawn.items():
            if drawn - model:
                raise draws_error(name, drawn)
        others = [name for name in self.own if not name.startswith(("batchfn", "grab"))]
        if everything:
            raise draws_error(" or ".join(others), everything)

    def compare(self, resumed: _Run) -> None:
        """Refuse what the interruption has changed."""
        for name, objects in self.held.items():
            for one, other in zip(objects, resumed.held[name], strict=True):
                if (place := difference(one, other)) is not None:
                    raise SpecError(keeps_state(name, place, _hint(name)))
        for what, one in self.results.items():
            if difference(one, resumed.results[what]) is not None:
                # The batches were compared before.
                others = [n for n in self.own if not n.startswith(("batchfn", "grab"))]
                names = [what] if what in self.own else others or [*self.own]
                hints = dict.fromkeys(map(_hint, names))
                raise SpecError(
                    f"{' or '.join(names)} keeps state that is not in a checkpoint: a training "
                    f"that is resumed after {_SAVED_AFTER} steps differs from an undisturbed one "
                    f"in {'its results' if what in self.own else what}; {'; or '.join(hints)}"
                )


def _hint(name: str) -> str:
    return _HINTS[name.partition(" ")[0]]


def _keeping(cls: Any, kept: list[Any]) -> Any:
    """Return a constructor of an optimizer that keeps the instances."""

    @functools.wraps(cls, updated=())
    def constructed(*args: Any, **kwargs: Any) -> Any:
        kept.append(cls(*args, **kwargs))
        return kept[-1]

    return constructed
