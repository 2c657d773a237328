"""Minibatches by epoch: every row once per epoch, reshuffled in each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.batchfns._arrays import Rows, pair_on_device, sample
from mlpsubmit.batchfns.fixed_batch import fixed
from mlpsubmit.batchfns.validation import check_choice
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import BatchFn

__all__ = ["epochs"]


def epochs(
    X_train: Rows,
    y_train: Rows,
    bsz: int,
    gen: torch.Generator,
    online: bool,
    split: str,
    X_test: Rows | None = None,
    y_test: Rows | None = None,
    X: Tensor | None = None,
    y: Tensor | None = None,
) -> BatchFn:
    r"""Batch function of minibatches by epoch: without replacement, reshuffled in each epoch.

    For ``ONLINE=True``, with ``N_SAMPLES`` as the size of a minibatch. An epoch of n training rows
    has n // bsz steps, so E epochs are ``MAX_ITER = E * (n // bsz)``. The n % bsz rows that are
    left over at the end of an epoch are not used in it, as with ``drop_last=True`` of PyTorch's
    DataLoader; the next order brings them back. The test set is that of ``sample``.

    The order of epoch e is the permutation by a generator seeded with (seed of gen, e). So the
    batch of a step follows from the step alone: a resumed training needs no other state. The order
    depends on neither bsz nor the device: minibatches of several sizes run through the same one.

    Args:
        X_train: (n, ...) inputs, of torch or numpy.
        y_train: (n,) or (n, d_out) targets.
        bsz: size of a minibatch, at most n.
        gen: its seed is that of the orders; nothing is drawn from it. Batches are on its device.
        online: has to be true: offline, all steps have the same batch.
        split: "train" or "test", the set that the batches are for.
        X_test: (m, ...) inputs of the test set, which evaluations need.
        y_test: (m,) or (m, d_out) its targets.
        X: if X and y are given, every step returns them.
        y: see X.

    Returns:
        ``batch_fn(step) -> (X (bsz, ...), y (bsz,) or (bsz, d_out))``.

    Raises:
        SpecError: if bsz is larger than n, in offline training, where a test set is asked for and
            there is none, and as ``sample``.

    Example:
        >>> sweep = Sweep(data=images("digits"), batchfn=epochs, N_SAMPLES=64, MAX_ITER=10 * 21)
        >>> X, gen = torch.arange(6.0)[:, None], torch.Generator()
        >>> batch_fn = epochs(X, X[:, 0], bsz=3, gen=gen, online=True, split="train")
        >>> sorted(torch.cat([batch_fn(2)[1], batch_fn(3)[1]]).tolist())  # the second epoch
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    check_choice("epochs", "split", split, ("train", "test"), "'train' and 'test'")
    if X is not None and y is not None:
        return fixed(X, y)
    if split == "test":
        if X_test is None and y_test is None:
            raise SpecError(
                "epochs: a test set is asked for (by EVAL_EVERY, or a grab of X_te), and there is "
                "none: it would be of the rows of the training; give X_test and y_test, as in "
                "data=arrays(X, y, X_test, y_test), or data=held_out(arrays(X, y), test_size=0.2)"
            )
        return sample(X_train, y_train, bsz, gen, online, split, X_test, y_test)
    if not online:
        raise SpecError(
            "epochs: got ONLINE=False, where every step trains on the same rows; valid is "
            "ONLINE=True with N_SAMPLES as the size of a minibatch; for steps on the whole "
            "training set try batchfn=sample"
        )
    X_all, y_all = pair_on_device("epochs", X_train, y_train, "train", gen.device)
    n = len(X_all)
    if bsz > n:
        raise SpecError(
            f"epochs: got minibatches of N_SAMPLES={bsz}, and the data have {n} training rows; "
            f"valid are 1 to {n}; try N_SAMPLES={min(n, 64)}"
        )
    return _Minibatches(X_all, y_all, bsz, gen.initial_seed())


class _Minibatches:
    """The batch_fn of ``epochs``, which looks ahead (:class:`~mlpsubmit.protocol.LooksAhead`).

    Args:
        X, y: n rows of training data, on the device.
        bsz: rows of a minibatch.
        seed: of the orders of all epochs.
    """

    def __init__(self, X: Tensor, y: Tensor, bsz: int, seed: int) -> None:
        self._X, self._y, self._bsz, self._seed = X, y, bsz, seed
        self._table = torch.zeros(0, bsz, dtype=torch.int64, device=X.device)
        self._place = torch.zeros(1, dtype=torch.int64, device=X.device)
        self._epoch, self._order = -1, self._place

    def _rows(self, step: int) -> Tensor:
        """Return the row numbers (bsz,) of the minibatch of a step, in RAM."""
        epoch, i = divmod(int(step), len(self._X) // self._bsz)
        if epoch != self._epoch:  # the order of one epoch is kept
            seeds = np.random.SeedSequence((self._seed, epoch))
            order = np.random.Generator(np.random.Philox(seeds)).permutation(len(self._X))
            self._epoch, self._order = epoch, torch.from_numpy(order)
        return self._order[i * self._bsz : (i + 1) * self._bsz]

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        rows = self._rows(step).to(self._X.device)
        return self._X.index_select(0, rows), self._y.index_select(0, rows)

    @property
    def buffers(self) -> list[Tensor]:
        """What a step changes in place: its place in the block."""
        return [self._place]

    def load(self, step: int, block: int) -> None:
        """Upload the row numbers of the steps from one on to the end of its block."""
        first = step % block
        if len(self._table) != block:
            self._table = self._table.new_zeros(block, self._bsz)
        rows = torch.stack([self._rows(i) for i in range(step, step - first + block)])
        self._table[first:].copy_(rows)  # in place, where a recorded step reads it
        self._place.fill_(first)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the minibatch of the next step, and go on."""
        rows = self._table.index_select(0, self._place).view(-1)
        # Around the end, where steps are tried that are not kept: while a stride is recorded.
        self._place.add_(1).remainder_(len(self._table))
        return self._X.index_select(0, rows), self._y.index_select(0, rows)
