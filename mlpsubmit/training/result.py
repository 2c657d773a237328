"""The results of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Array", "Trained"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Trained:
    """The results of K configs, in the order in which they were given.

    K configs, T thresholds, and R, E, G steps at which losses are recorded, test losses evaluated
    and grabs called. With ONLYTHRESHOLDS there are no traces: the losses are (K,), the grabs
    (K, ...), and the three arrays of steps are empty.

    Attributes:
        status: (K,) uint8, :data:`mlpsubmit.protocol.DONE` or ``DIVERGED``.
        steps: (K,) int64, gradient steps made.
        timekeys: (K, T) int64, per threshold (descending) the step at which the smoothed train
            loss was first below it; -1 if it never was.
        train_loss: (K,) or (K, R) float64, smoothed.
        test_loss: (K,) or (K, E) float64, smoothed; NaN where it is not evaluated: online without
            EVAL_EVERY (then E = 0), and without a test set.
        step: (R,) int64, the steps of ``train_loss`` and of ``train_<metric>``.
        eval_step: (E,) int64, the steps of ``test_loss`` and of ``test_<metric>``.
        grab_step: (G,) int64, the steps of the grabs; empty without grabs.
        grabs: per name, (K, ...) or (K, G, ...). Booleans and integers stay what they are where
            no value is missing, else they become float64, with NaN for what is missing. Where the
            grab of one config is larger than that of another, the smaller is padded with NaN. A
            grab that returns dictionaries has ``<name>_<key>`` for each key, NaN for configs whose
            dictionaries lack it.
        entries: for each name in ``grabs`` that is of a dictionary, the grab and the key.
        weights_step: (S,) int64, the steps after which weights were kept; empty where those at the
            end were, or none.
        weights: per name of a parameter or buffer, (K, ...) or (K, S, ...); empty without
            SAVE_WEIGHTS.
        metrics: per name, such as ``test_accuracy``, float64 in the shape of ``train_loss`` or
            ``test_loss``, not smoothed; none of the test set where it is not evaluated.
        metric_timekeys: per name in METRIC_THRESHOLDS, (K, T) int64, per threshold (in the order of
            crossing) the first step at which it was reached; -1 if it never was.
    """

    status: Array
    steps: Array
    timekeys: Array
    train_loss: Array
    test_loss: Array
    step: Array
    eval_step: Array
    grab_step: Array
    grabs: dict[str, Array] = field(default_factory=dict)
    entries: dict[str, tuple[str, str]] = field(default_factory=dict)
    weights_step: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    weights: dict[str, Array] = field(default_factory=dict)
    metrics: dict[str, Array] = field(default_factory=dict)
    metric_timekeys: dict[str, Array] = field(default_factory=dict)
