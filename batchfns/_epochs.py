"""Minibatches by epoch: every row once, in an order that each epoch draws anew."""

from __future__ import annotations

import functools

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
        X_test: (m, ...) inputs of the test set.
        y_test: (m,) or (m, d_out) its targets.
        X: if X and y are given, every step returns them.
        y: see X.

    Returns:
        ``batch_fn(step) -> (X (bsz, ...), y (bsz,) or (bsz, d_out))``.

    Raises:
        SpecError: if bsz is larger than n, in offline training, and as ``sample``.

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
    steps, seed = n // bsz, gen.initial_seed()

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        of_epoch = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
        return torch.from_numpy(of_epoch.permutation(n)).to(gen.device)

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        epoch, i = divmod(step, steps)
        rows = order(int(epoch))[i * bsz : (i + 1) * bsz]
        return X_all.index_select(0, rows), y_all.index_select(0, rows)

    return batch_fn
