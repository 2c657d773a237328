"""bench/overheads.py measures the package's own pieces, here at sizes that take no time."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def overheads(bench, monkeypatch):
    module = bench("overheads")
    monkeypatch.setattr(module, "MAX_ITER", 24)
    monkeypatch.setattr(module, "PACKS", ((64, 4, 4),))
    return module


@pytest.mark.slow
def test_saves_heartbeats_and_records_are_the_real_ones(overheads, figures_in, tmp_path, capsys):
    (tmp_path / "files").mkdir()
    arguments = ["--repeats", "1", "--folder", str(tmp_path / "files")]
    overheads.main([*arguments, "--save", str(tmp_path)])
    assert "of 5 min" in capsys.readouterr().out
    assert not list((tmp_path / "files").iterdir())
    figures = {key: one.median for key, one in figures_in(tmp_path).items()}
    save = {what: value for (case, what), value in figures.items() if case == "one save, width 64"}
    weights = 64 * (32 + 1) + 64 * (64 + 1) + 64 + 1
    # Weights and generators, both as they are and as they were at first: outputs are centred.
    state = 4 * weights + torch.Generator().get_state().nbytes
    assert save["megabytes"] == pytest.approx(64 * 2 * state / 1e6, rel=0.03)
    assert save["configs"] == 64
    assert 0 < save["seconds"] <= save["slowest"]
    assert figures["heartbeats, width 64", "publish_seconds"] > 0
    assert [case for case, what in figures if what == "speed"] == list(overheads.RECORDINGS)
    assert all(figures[name, "speed"] > 0 for name in overheads.RECORDINGS)
    assert figures["final losses", "of final losses"] == 1


def test_a_stopwatch_tells_steps_and_saves_apart(bench):
    workload = bench("workload")

    class SavesTwice(workload.Monitor):
        asked = 0

        def due(self, step):
            self.asked += 1
            return self.asked in (2, 5)

    stopwatch = workload.Stopwatch(SavesTwice())
    workload.Workload(width=4, configs=2, batch=3, d=2).train(8, {}, monitor=stopwatch)
    assert stopwatch.steps == 7
    assert len(stopwatch.step_seconds) == 6
    assert len(stopwatch.save_seconds) == 2
    assert sum(stopwatch.step_seconds) < stopwatch.seconds
