"""Random numbers of forward passes, such as dropout: from a stream of each config's own.

A model alone draws from torch's global generators, which hold the stream of its config throughout
the training (:func:`mlpsubmit.training.seeds.global_stream`). Models that are computed together
each need draws of their own, but torch would make all of them from one generator. So the samplers
of their forward pass are intercepted below ``vmap``, where each result has a row per model, and
every row is drawn from the generator of its config. Configs of one trial have one stream: what
these draw is drawn once.

Both ways fill a contiguous tensor per model by the sampler of one kind. So a config draws the same
numbers alone and in a pack, also on a GPU, where torch's dropout has a kernel with draws of its
own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mlpsubmit.training.parts import Part
from mlpsubmit.training.seeds import Streams, global_states, global_stream
from mlpsubmit.training.unvectorised import OneAtATime

__all__ = ["Draws"]

_ATEN = torch.ops.aten

#: Fills a tensor in place with random numbers from a generator; None is torch's global one.
_Fill = Callable[[Tensor, torch.Generator | None], Any]


class Draws(Part):
    """The random numbers that the models of a pack draw in their forward passes.

    Args:
        streams: per row of the stack, the seeds of its config.
        alone: whether a single model is called as it is.
        device: of the models.
        recurrent: whether they have recurrent layers with dropout. cuDNN draws that from a state
            which outlives the training and cannot be saved, so it is not used for them.

    Attributes:
        alone: as given.
        in_steps, in_evaluations: whether the models draw in training mode, and in eval mode; None
            before the first forward pass.
        rows: per row of the stack, the seeds of its config.
        active: whether draws are intercepted now.
    """

    def __init__(
        self,
        streams: Sequence[Streams],
        alone: bool,
        device: torch.device,
        recurrent: bool = False,
    ) -> None:
        self.alone, self._device, self._recurrent = alone, device, recurrent
        self.in_steps: bool | None = None
        self.in_evaluations: bool | None = None
        self.active = False
        self._set_rows(streams)
        self._own = _Generators([one.draws for one in self._streams])

    def _set_rows(self, rows: Sequence[Streams]) -> None:
        self.rows = list(rows)
        self._streams = list(dict.fromkeys(rows))
        self._gathering = _Gathering.of(self.rows, self._streams, self._device)

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators of a packed training: they advance at every step."""
        return [generator for made in self._own.by_device.values() for generator in made]

    @property
    def obstacle(self) -> str | None:
        """Why a step that draws cannot be recorded as a CUDA graph."""
        if self.alone and self.in_steps:
            return "the model draws random numbers, and trains alone"
        return "the model draws random numbers in evaluations" if self.in_evaluations else None

    def step(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward and backward pass in training mode."""
        if not self.in_steps:
            return contextlib.nullcontext()
        return self._intercepting(None if self.alone else self._own, self._gathering)

    def evaluation(
        self, rows: Sequence[int] | None = None
    ) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass in eval mode: each draws the same numbers.

        Args:
            rows: those of the stack that are evaluated; None for all of them.
        """
        return self._unseen(rows) if self.in_evaluations else contextlib.nullcontext()

    def showing(self, row: int) -> contextlib.AbstractContextManager[None]:
        """Return the context of a measurement of one model, which may draw in either mode."""
        return global_stream(self.rows[row].evaluations, self._device)

    @contextlib.contextmanager
    def watched(self, kind: str) -> Iterator[None]:
        """Find out whether a forward pass draws; without an effect on later draws.

        Args:
            kind: ``"in_steps"`` or ``"in_evaluations"``, the attribute to set.
        """
        if getattr(self, kind) is not None:
            with self._unseen() if getattr(self, kind) else contextlib.nullcontext():
                yield
            return
        with self._unseen() as mode:
            before = global_states(self._device)
            yield
            after = global_states(self._device)
        # Draws from numpy and random are no operations of torch.
        setattr(self, kind, mode.drawn or any(before[n] != after[n] for n in ("numpy", "random")))

    @contextlib.contextmanager
    def _unseen(self, rows: Sequence[int] | None = None) -> Iterator[_Intercepted]:
        """Draw from streams that start anew, within the context."""
        chosen = [self.rows[row] for row in (range(len(self.rows)) if rows is None else rows)]
        streams = list(dict.fromkeys(chosen))
        seeds = [one.evaluations for one in streams]
        gathering = _Gathering.of(chosen, streams, self._device)
        with contextlib.ExitStack() as stack:
            if self.alone:
                stack.enter_context(global_stream(seeds[0], self._device))
            yield stack.enter_context(
                self._intercepting(None if self.alone else _Generators(seeds), gathering)
            )

    @contextlib.contextmanager
    def _intercepting(
        self, generators: _Generators | None, gathering: _Gathering
    ) -> Iterator[_Intercepted]:
        cudnn = torch.backends.cudnn
        before, self.active = cudnn.enabled, True
        cudnn.enabled = before and not self._recurrent
        try:
            with _Intercepted(generators, gathering, self._device) as mode:
                yield mode
        finally:
            cudnn.enabled, self.active = before, False

    def row(self, row: int) -> Draws:
        """Return those of one row, to evaluate it once alone: it draws from global generators."""
        single = Draws(self.rows[row : row + 1], True, self._device, self._recurrent)
        single.in_steps, single.in_evaluations = self.in_steps, self.in_evaluations
        return single

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep these rows, and only the streams that they draw from."""
        before = self._streams
        self._set_rows([self.rows[row] for row in keep])
        self._own.keep([before.index(one) for one in self._streams])

    def state_dict(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state_dict`."""
        states = {
            device: [generator.get_state() for generator in made]
            for device, made in self._own.by_device.items()
        }
        return {"in_steps": self.in_steps, "rows": list(map(list, self.rows)), "states": states}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a saved state."""
        self.in_steps = state["in_steps"]
        self._set_rows([Streams(*one) for one in state["rows"]])
        self._own = _Generators([one.draws for one in self._streams])
        for kind, states in state["states"].items():
            for generator, saved in zip(self._own.on(torch.device(kind)), states, strict=True):
                generator.set_state(saved.cpu())


class _Gathering(NamedTuple):
    """How draws of streams become draws of rows.

    Attributes:
        rows: how many there are.
        chosen: per row its stream; None where these are in order.
    """

    rows: int
    chosen: Tensor | None

    @classmethod
    def of(
        cls, rows: Sequence[Streams], streams: Sequence[Streams], device: torch.device
    ) -> _Gathering:
        """Return it for rows of these streams. On a device its index is copied there."""
        index = [streams.index(one) for one in rows]
        in_order = index == list(range(len(rows)))
        return cls(len(rows), None if in_order else torch.tensor(index, device=device))


class _Generators:
    """A generator per stream on each device, made when it is first drawn from.

    Attributes:
        by_device: the generators that were made, by the name of their device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self.by_device: dict[str, list[torch.Generator]] = {}

    @property
    def count(self) -> int:
        """The number of streams."""
        return len(self._seeds)

    def on(self, device: torch.device) -> list[torch.Generator]:
        """Return the generators on a device."""
        if str(device) not in self.by_device:
            made = [torch.Generator(device).manual_seed(seed) for seed in self._seeds]
            self.by_device[str(device)] = made
        return self.by_device[str(device)]

    def keep(self, streams: Sequence[int]) -> None:
        """Keep the generators of these streams."""
        self._seeds = [self._seeds[stream] for stream in streams]
        self.by_device = {d: [made[s] for s in streams] for d, made in self.by_device.items()}


class _Intercepted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draws what a forward pass draws, for every model from its own stream.

    Args:
        generators: per stream of a vectorised forward pass; None for a model alone.
        gathering: of the rows of the stack.
        device: of the models.

    Attributes:
        drawn: whether anything was drawn.
    """

    def __init__(
        self, generators: _Generators | None, gathering: _Gathering, device: torch.device
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn, self._generators = False, generators
        self._gathering, self._device = gathering, device

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the compiler is imported, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _may_draw(func):
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            if self._generators is not None:
                raise OneAtATime("draws random numbers from a generator of its own")
            return func(*args, **kwargs)
        if func in _INTERCEPTED:
            return _INTERCEPTED[func](self, func, args, kwargs)
        return self._unknown(func, args, kwargs)

    def sample(self, fill: _Fill, size: Sequence[int], **options: Any) -> Tensor:
        """Return a tensor of random numbers; its first dimension are the rows of the stack."""
        self.drawn = True
        if self._generators is None:
            alone = torch.empty(size, **options)
            fill(alone, None)
            return alone
        if not size or size[0] != self._gathering.rows:
            raise OneAtATime("draws random numbers inside of a vmap of its own")
        drawn = torch.empty((self._generators.count, *size[1:]), **options)
        # Its device has an index, that of the options may have none: "cuda" is one with "cuda:0".
        for row, generator in zip(drawn, self._generators.on(drawn.device), strict=True):
            fill(row, generator)
        chosen = self._gathering.chosen
        return drawn if chosen is None else drawn.index_select(0, chosen.to(drawn.device))

    def _unknown(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operation that may draw, as attention may: refuse that for several models."""
        before = self._states()
        result = func(*args, **kwargs)
        if before is not None and self._states() != before:
            self.drawn = True
            if self._generators is not None:
                name = func.overloadpacket.__name__
                raise OneAtATime(
                    f"draws random numbers by {name}, which draws for one model at a time"
                )
        return result

    def _states(self) -> list[bytes] | None:
        """Return the states of torch's generators; None while a CUDA graph is recorded."""
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return None
            states.append(torch.cuda.get_rng_state(self._device))
        return [state.numpy().tobytes() for state in states]


@functools.cache
def _may_draw(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


# ---- the samplers, by the operations that torch's functions end in


def _fill(func: Any, *numbers: Any, **named: Any) -> _Fill:
    def fill(tensor: Tensor, generator: torch.Generator | None) -> None:
        func(tensor, *numbers, **named, generator=generator)

    return fill


def _uniform() -> _Fill:
    return _fill(_ATEN.uniform_.default, 0.0, 1.0)


def _normal(mean: float = 0.0, std: float = 1.0) -> _Fill:
    return _fill(_ATEN.normal_.default, mean, std)


def _integers(low: int, high: int) -> _Fill:
    return _fill(getattr(_ATEN.random_, "from"), low, high)


def _bernoulli(p: float) -> _Fill:
    return _fill(_ATEN.bernoulli_.float, p)


def _in_place(mode: _Intercepted, func: Any, args: Any, kwargs: Any) -> Tensor:
    """Tensor.bernoulli_(p), normal_(mean, std), exponential_() and the like."""
    target: Tensor = args[0]
    named = {name: value for name, value in kwargs.items() if name != "generator"}
    fill = _fill(func, *args[1:], **named)
    return target.copy_(mode.sample(fill, target.shape, dtype=target.dtype, device=target.device))


def _made(
    fill: Callable[..., _Fill], dtype: torch.dtype | None = None
) -> Callable[[_Intercepted, Any, Any, Any], Tensor]:
    """torch.rand(size), randint(low, high, size) and the like: the size is the last argument."""

    def made(mode: _Intercepted, func: Any, args: Any, kwargs: Any) -> Tensor:
        *numbers, size = args
        options = {name: kwargs.get(name) for name in ("dtype", "device")}
        options["dtype"] = options["dtype"] or dtype
        return mode.sample(fill(*numbers), size, **options)

    return made


def _like(fill: Callable[..., _Fill]) -> Callable[[_Intercepted, Any, Any, Any], Tensor]:
    """torch.rand_like(tensor), bernoulli(tensor, p) and the like: of the tensor's shape."""

    def made(mode: _Intercepted, func: Any, args: Any, kwargs: Any) -> Tensor:
        like, *numbers = args
        dtype, device = kwargs.get("dtype") or like.dtype, kwargs.get("device") or like.device
        return mode.sample(fill(*numbers), like.shape, dtype=dtype, device=device)

    return made


def _dropout(mode: _Intercepted, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Dropout on a GPU, which returns the output and the mask, as it is computed under vmap."""
    x, p = args[:2]
    kept = mode.sample(_bernoulli(1 - p), x.shape, dtype=torch.bool, device=x.device)
    return x * (kept.to(x.dtype) / (1 - p)), kept


_INTERCEPTED: dict[Any, Callable[[_Intercepted, Any, Any, Any], Any]] = {
    **dict.fromkeys(
        (
            _ATEN.bernoulli_.float,
            _ATEN.uniform_.default,
            _ATEN.normal_.default,
            _ATEN.exponential_.default,
            _ATEN.cauchy_.default,
            _ATEN.log_normal_.default,
            _ATEN.geometric_.default,
            _ATEN.random_.default,
            _ATEN.random_.to,
            getattr(_ATEN.random_, "from"),
        ),
        _in_place,
    ),
    _ATEN.rand.default: _made(_uniform),
    _ATEN.randn.default: _made(_normal),
    _ATEN.normal.float_float: _made(_normal),
    _ATEN.randint.default: _made(lambda high: _integers(0, high), torch.int64),
    _ATEN.randint.low: _made(_integers, torch.int64),
    _ATEN.rand_like.default: _like(_uniform),
    _ATEN.randn_like.default: _like(_normal),
    _ATEN.randint_like.default: _like(lambda high: _integers(0, high)),
    _ATEN.randint_like.low_dtype: _like(_integers),
    _ATEN.bernoulli.p: _like(_bernoulli),
    _ATEN.native_dropout.default: _dropout,
}
