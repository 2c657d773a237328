"""The files of bench/results, and the page that is written from them."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError


@pytest.fixture
def results(bench):
    return bench("results")


@pytest.fixture
def page(bench):
    return bench("page")


@pytest.fixture
def saved(results, tmp_path, monkeypatch):
    """A function that writes a record of a benchmark, on a processor at some time."""

    def save(benchmark, processor="Some CPU @ 2.0 GHz", at="2026-01-02T03:04:05Z", speed=2.0):
        machine = results.Machine(
            processor=processor, cores=8, instructions=["avx", "avx2"], system="Linux x86_64"
        )
        monkeypatch.setattr(results.Machine, "this", lambda: machine)
        recording = results.Recording(benchmark, {"jax": "1.2.3"})
        recording._at = results.datetime.datetime.fromisoformat(at.replace("Z", "+00:00"))
        found = [
            results.figure("online", "run", "model-steps/s", [1000.0 * speed, 1e3, 5e3]),
            results.figure("online", "over JAX", "x", [1.25, speed, 1.5], target=1.3),
            results.figure("online", "peak", "GFLOP/s", 512.0),
        ]
        recording.save(found, tmp_path)

    return save


def test_committed_results_are_of_the_format_and_have_their_names(results):
    for file in results.FOLDER.glob("*"):
        content = results.Results.model_validate_json(file.read_text())
        assert content.records
        names = {results.file_name(record.at, content.machine) for record in content.records}
        assert names == {file.name}
        benchmarks = [record.benchmark for record in content.records]
        assert len(set(benchmarks)) == len(benchmarks)


def test_the_page_is_what_is_written_from_the_committed_results(page):
    text = page.PAGE.read_text()
    assert text == page.written(text), "run python bench/page.py, and commit the page"
    assert page.main(["--check"]) == 0


def test_a_record_takes_the_place_of_one_of_the_same_day(results, saved, tmp_path):
    saved("trainloop", speed=2.0)
    saved("ntk")
    saved("trainloop", at="2026-01-02T13:04:05Z", speed=3.0)
    (file,) = tmp_path.iterdir()
    assert file.name == "2026-01-02-some-cpu-2-0-ghz.json"
    content = results.Results.model_validate_json(file.read_text())
    assert [record.benchmark for record in content.records] == ["ntk", "trainloop"]
    record = content.records[-1]
    assert record.versions["jax"] == "1.2.3"
    assert {"python", "mlpsubmit", "torch", "numpy", "jax"} == set(record.versions)
    assert record.load >= 0
    one = record.of("run")["online"]
    assert (one.min, one.median, one.max, one.rounds) == (1000, 3000, 5000, 3)


def test_nothing_is_written_unless_it_is_asked_for(results, tmp_path):
    results.Recording("ntk").save([], None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"machine": {"processor": "x"}},
        {"further": 1},
        {"records": [{"benchmark": "ntk", "figures": []}]},
    ],
)
def test_other_files_are_refused(change, results, saved, tmp_path):
    saved("ntk")
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert results.Results.model_validate(content)
    with pytest.raises(ValidationError):
        results.Results.model_validate({**content, **change})


def test_a_figure_lies_between_its_smallest_and_its_largest_value(results):
    good = {"case": "a", "what": "b", "unit": "s", "median": 2.0, "min": 1.0, "max": 3.0}
    assert results.Figure(**good, rounds=3)
    with pytest.raises(ValidationError, match="the median should be between min and max"):
        results.Figure(**{**good, "min": 2.5}, rounds=3)


def test_the_newest_record_of_each_processor_counts(results, saved, tmp_path):
    saved("trainloop", at="2026-03-01T00:00:00Z", speed=4.0)
    saved("trainloop", at="2026-01-01T00:00:00Z", speed=2.0)
    saved("trainloop", processor="Another", at="2025-01-01T00:00:00Z")
    saved("ntk", processor="A third", at="2027-01-01T00:00:00Z")
    found = results.records("trainloop", tmp_path)
    assert list(found) == ["Another", "Some CPU @ 2.0 GHz"]
    assert found["Some CPU @ 2.0 GHz"][1].of("run")["online"].median == 4000


# ---- the page ------------------------------------------------------------------------------------


def test_a_section_has_a_table_for_each_processor(page, saved, tmp_path):
    saved("trainloop", speed=1.25)
    saved("trainloop", processor="Another", at="2025-06-07T00:00:00Z", speed=1.75)
    text = page.section("trainloop", tmp_path)
    another, some = text.split("**Some CPU @ 2.0 GHz**")
    assert another.startswith("**Another**, ")
    assert "cores (avx2); 2025-06-07, commit " in another
    assert "jax 1.2.3" in another
    assert "| online | 1,750 | " in another
    assert "| 1.50 (1.25 to 1.75); target 1.30 |" in another
    assert "| **1.25 (1.25 to 1.50); target 1.30** |" in some
    assert "the peak 512 GFLOP/s. Targets reached: 0 of 1." in some
    assert page.section("ntk", tmp_path) == ""


def test_prose_stays_and_what_is_measured_is_replaced(page, saved, tmp_path):
    sections = [f"<!-- bench:{name} -->\nold {name}\n<!-- end -->\n" for name in page.TABLES]
    before = f"before\n{''.join(sections)}after\n"
    assert page.written(before, tmp_path) == before
    saved("ntk")
    text = page.written(before, tmp_path)
    assert text.startswith("before\n<!-- bench:trainloop -->\nold trainloop\n<!-- end -->\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "<!-- bench:ntk -->\n**Some CPU @ 2.0 GHz**, " in text
    assert "old ntk" not in text
    assert page.written(text, tmp_path) == text


@pytest.mark.parametrize("text", ["", "<!-- bench:nothing -->\n<!-- end -->\n"])
def test_every_benchmark_has_one_section(text, page, tmp_path):
    with pytest.raises(SystemExit, match=r"sections of the page are \[.*\]; should be \['trainlo"):
        page.written(text, tmp_path)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.543, "share", "54%"),
        (0.00041, "share", "0.041%"),
        (0.0113, "s", "11 ms"),
        (3.26, "s", "3.3 s"),
        (123.4, "MB", "123 MB"),
        (0.974, "x", "0.97"),
        (12345.6, "model-steps/s", "12,346"),
    ],
)
def test_numbers_are_short(value, unit, text, page):
    assert page.number(value, unit) == text
