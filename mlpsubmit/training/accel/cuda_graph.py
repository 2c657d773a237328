"""CUDA graphs: the recording of a step, with the generators that it draws from.

This is all of the code that cannot run without a GPU. What is recorded, when, and whether the
recording is used is decided in :mod:`mlpsubmit.training.accel.replay`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from mlpsubmit.training.batches import Aside

__all__ = ["CudaAside", "CudaRecorder"]

T = TypeVar("T")

#: Streams on which the batch functions of a step draw at the same time, at most, and functions for
#: each: on an H100 eight functions of three kernels were slower on eight streams than on one.
LANES, PER_LANE = 8, 8


class CudaRecorder:
    """Records work on a GPU as CUDA graphs.

    Args:
        device: the GPU.
        shared: whether others use it at the same time. Then a recording has one stream: the device
            has enough to do, and to launch a graph with branches takes the host much longer.
    """

    def __init__(self, device: torch.device, shared: bool = False) -> None:
        # Libraries initialise themselves per stream, which cannot be recorded: so the watched step
        # runs on the stream that is recorded later.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Kernels of small works are short, and what waits for them is long: they go first.
        new: Any = partial(torch.cuda.Stream, device, priority=-1)
        self._further = [] if shared else [new() for _ in range(1 + LANES)]

    def aside(self) -> Aside:
        """Return what does works of steps aside; a new one for each recording."""
        return CudaAside(self._further[0], self._further[1:]) if self._further else Aside()

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[str]]:
        """List where the work within the context waits for the device.

        The list is complete once the context has ended.
        """
        waits: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with _sync_debug_mode("warn"), self._on_stream():
                yield waits
        for warning in caught:
            if "called a synchronizing CUDA operation" in str(warning.message):
                waits.append(f"{warning.filename}:{warning.lineno}")
            elif "prototype feature" not in str(warning.message):
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        before = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:  # whatever uses this memory next waits for what has been queued
            before.wait_stream(self._stream)

    def record(
        self, works: Sequence[Callable[[], T]], generators: Sequence[torch.Generator]
    ) -> list[Callable[[], T]]:
        """Record some works, without doing them; return functions that do them at each call.

        Each call works on the same memory, separate from that of eager work, and overwrites what it
        has returned before. The recordings share memory for all but their results, so they must
        run one after another.

        Args:
            generators: those that the works draw from. Each call advances them. Recording may
                advance them too: restore their states before the first call.

        Raises:
            Exception: if a work cannot be recorded.
        """
        pool = torch.cuda.graph_pool_handle()
        return [self._recorded(work, generators, pool) for work in works]

    def _recorded(
        self, work: Callable[[], T], generators: Sequence[torch.Generator], pool: Any
    ) -> Callable[[], T]:
        index, graph = self._stream.device.index, torch.cuda.CUDAGraph()
        spare = [(g, g.clone_state()) for g in (*generators, torch.cuda.default_generators[index])]
        for generator in generators:
            graph.register_generator_state(generator)
        try:
            # The outer context, because a failed capture leaves its stream the current one.
            with (
                _own_workspaces(),
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, pool=pool, stream=self._stream),
            ):
                result = work()
        except Exception:
            # Otherwise generators cannot draw and the allocator cannot free: to them the capture
            # has not ended.
            for generator, state in spare:
                generator.graphsafe_set_state(state)
            with contextlib.suppress(Exception):  # the allocator may have ended it
                torch._C._cuda_endAllocateToPool(index, pool)
            raise

        def replay() -> T:
            graph.replay()
            return result

        return replay


class CudaAside(Aside):
    """Draws the batch of a step on a second stream, while the current one makes the step before.

    The memory of a work's results is of the second stream: it may be used again by works on that
    stream as soon as Python has freed it, while the current stream may still read it. So results
    are held until the next work has been launched; and that after next waits until the current
    stream has made the step that used them. Parts of a work run on further streams, and the second
    one waits for them: their memory is used again by later works only.

    Args:
        stream: the second stream.
        lanes: the further streams.
    """

    def __init__(self, stream: torch.cuda.Stream, lanes: Sequence[torch.cuda.Stream]) -> None:
        self._stream, self._lanes = stream, lanes
        #: What the current stream had been given when the last work was launched.
        self._reached: torch.cuda.Event | None = None
        self._held: Any = None

    def __call__(self, work: Callable[[], T]) -> T:
        """Do some work on the second stream, and let the current one wait for it."""
        current = torch.cuda.current_stream(self._stream.device)
        reached = current.record_event()
        self._stream.wait_event(reached if self._reached is None else self._reached)
        try:
            with torch.cuda.stream(self._stream):
                made = work()
        finally:
            current.wait_stream(self._stream)
        self._reached, self._held = reached, made
        return made

    def each(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Do the parts of a work, many of them at the same time; return their results."""
        current = torch.cuda.current_stream(self._stream.device)
        lanes = self._lanes[: len(works) // PER_LANE]
        if len(lanes) < 2:
            return super().each(works)
        for lane in lanes:
            lane.wait_stream(current)
        made = list[T]()
        try:
            for number, work in enumerate(works):
                with torch.cuda.stream(lanes[number % len(lanes)]):
                    made.append(work())
        finally:
            for lane in lanes:
                current.wait_stream(lane)
        return made


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let cuBLAS take workspaces from the memory of the graph that is recorded.

    It has one per stream of PyTorch, of which there are 32 that several packs use in turn: graphs
    with the same workspace would write into it at the same time.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@contextlib.contextmanager
def _sync_debug_mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
