"""bench/lr_transfer.py at a small size."""

from __future__ import annotations

import numpy as np


def test_every_case_trains(bench, monkeypatch):
    module = bench("lr_transfer")
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setitem(module.SETTINGS, "MAX_ITER", 2)
    for settings, _ in module.CASES.values():
        found = module.losses(4, settings, np.array([0.01, 0.1]), trials=2)
        assert found.shape == (2,)
        assert np.isfinite(found).all()
