"""Event files, as TensorBoard's own readers read them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import backend_context, list_session_groups, metadata
from tensorboard.plugins.hparams.api_pb2 import (
    STATUS_FAILURE,
    STATUS_SUCCESS,
    ColParams,
    Experiment,
    ListSessionGroupsRequest,
    Status,
)

from mlpsubmit import export_run
from mlpsubmit.runs.run import Run
from tests.export.killed import killing

#: The labels of the configs, by their index.
LABELS = [f"width={width}, note={note}, factor=nan" for width in (4, 8) for note in
          ("a∕b", "a∕b_2", r"x\ny", "fails")]  # fmt: skip


@pytest.fixture(scope="module")
def folder(study: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, exported."""
    return export_run(study, "tensorboard", out=tmp_path_factory.mktemp("logs"))


def loaded(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def scalars(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    found = loaded(folder).Scalars(tag)
    return [one.step for one in found], [one.value for one in found]


def content(folder: Path, tag: str) -> bytes:
    found: bytes = loaded(folder).SummaryMetadata(tag).plugin_data.content
    return found


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items()}


def test_there_is_a_run_for_each_config_and_names_are_unique(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(LABELS)
    assert sorted(map(str, EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload().Runs())) \
        == sorted([".", *LABELS])  # fmt: skip


def test_curves_are_those_of_the_dataset_at_their_steps(study: Run, folder: Path) -> None:
    dataset = study.collect()
    for index, label in enumerate(LABELS):
        config = dataset.isel(width=index // 4, note=index % 4, factor=0)
        if config.status == "failed":
            continue
        made = max(int(config.steps), 1)
        names = {name: name for name in ("train_loss", "test_loss", "size", "crossed_size")}
        names |= {f"two_x₀/dim0={i}": "two_$x_0$" for i in range(2)}
        if config.status == "diverged":  # before the first call of a grab
            assert loaded(folder / label).Tags()["scalars"] == [
                *("train_loss", "test_loss", "steps", "seconds")
            ]
            names = {"train_loss": "train_loss"}
        for tag, name in names.items():
            steps, values = scalars(folder / label, tag)
            variable = config[name]
            clock = variable[variable.dims[0]].values
            own = variable.values if variable.ndim == 1 else variable.values[:, int(tag[-1])]
            expected = clock[clock < made - 1].tolist()
            expected += [made - 1]
            assert steps == expected, (label, tag)
            np.testing.assert_array_equal(values, own[: len(steps)].astype(np.float32))
    assert scalars(folder / LABELS[2], "train_loss")[1] == [math.inf]


def test_numbers_are_at_the_last_step(study: Run, folder: Path) -> None:
    config = study.collect().isel(width=0, note=0, factor=0)
    own, last = folder / LABELS[0], int(config.steps) - 1
    assert scalars(own, "timekeys/0.9") == ([last], [float(config.timekeys[0])])
    assert scalars(own, "steps") == ([last], [last + 1])
    assert scalars(own, "seconds")[0] == [last]
    tags = loaded(own).Tags()["scalars"]
    assert "timekeys/1e-09" not in tags  # never crossed
    assert [tag for tag in tags if tag.startswith(("crossed", "large"))] == ["crossed_size"]


def test_settings_and_how_it_ended_are_those_of_the_hparams_plugin(
    study: Run, folder: Path
) -> None:
    for index, label in enumerate(LABELS):
        start = metadata.parse_session_start_info_plugin_data(
            content(folder / label, metadata.SESSION_START_INFO_TAG)
        )
        end = metadata.parse_session_end_info_plugin_data(
            content(folder / label, metadata.SESSION_END_INFO_TAG)
        )
        failed = index % 4 == 3
        assert start.group_name == label
        assert start.hparams["width"].number_value == (4, 8)[index // 4]
        assert start.hparams["note"].string_value == ("a/b", "a∕b", "x\ny", "fails")[index % 4]
        assert start.hparams["factor"].string_value == "nan"  # which JSON has not as a number
        assert start.hparams["lr"].number_value == 0.1
        assert start.hparams["onlythresholds"].bool_value is False
        assert start.hparams["onlythresholds"].WhichOneof("kind") == "bool_value"
        assert start.hparams["status"].string_value == \
            ("done", "done", "diverged", "failed")[index % 4]  # fmt: skip
        assert end.status == (STATUS_FAILURE if failed else STATUS_SUCCESS)
        assert end.end_time_secs >= start.start_time_secs > 1.7e9
    (why,) = loaded(folder / LABELS[3]).Tensors("error")
    assert why.tensor_proto.string_val[0].decode() == (
        "    ValueError: no *data*\\n</b>\n    \n"
        "    Traceback:\n      *spec*\n    ValueError: no *data*\n    </b>"
    )


def test_the_hparams_tab_has_axes_first_and_all_numbers(study: Run, folder: Path) -> None:
    context = TBContext(data_provider=MultiplexerDataProvider(
        EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload(), str(folder)
    ))  # fmt: skip
    backend, request = backend_context.Context(context), RequestContext()
    contents = backend.hparams_metadata(request, "")
    experiment: Experiment = backend.experiment_from_metadata(request, "", True, contents, None)
    names = [info.name for info in experiment.hparam_infos]
    assert set(names[:3]) == {"width", "note", "status"}
    assert {"factor", "lr", "gamma", "batchfn"} < set(names)
    width = next(info for info in experiment.hparam_infos if info.name == "width")
    assert [value.number_value for value in width.domain_discrete.values] == [4, 8]
    tags = [info.name.tag for info in experiment.metric_infos]
    assert {"train_loss", "test_loss", "size", "steps", "timekeys/0.9"} < set(tags)
    wanted = ListSessionGroupsRequest(
        allowed_statuses=[s for s in Status.values() if s],
        col_params=[ColParams(metric=info.name) for info in experiment.metric_infos],
        slice_size=100,
    )
    groups = list_session_groups.Handler(
        request_context=request, backend_context=backend, experiment_id="", request=wanted
    ).run()
    rows = json.loads(json_format.MessageToJson(groups))["sessionGroups"]
    assert sorted(row["name"] for row in rows) == sorted(LABELS)
    diverged = next(row for row in rows if row["name"] == LABELS[2])
    values = {one["name"]["tag"]: one.get("value") for one in diverged["metricValues"]}
    assert values["train_loss"] == "Infinity"
    states = {row["name"]: row["sessions"][0]["status"] for row in rows}
    assert states[LABELS[0]] == "STATUS_SUCCESS"
    assert states[LABELS[3]] == "STATUS_FAILURE"


def test_exported_again_nothing_changes(study: Run, folder: Path) -> None:
    before = files(folder)
    inodes = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert export_run(study, "tensorboard", out=folder) == folder
    assert files(folder) == before
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == inodes


def test_only_what_is_new_is_added(
    own_study: Run, keep: Callable[[int], None], folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "logs"
    keep(3)
    export_run(own_study, "tensorboard", out=own)
    first = {path: path.stat().st_ino for path in own.glob("*/*")}
    assert len(first) == 3
    keep(8)
    export_run(own_study, "tensorboard", out=own)
    assert {path: path.stat().st_ino for path in own.glob("*/*") if path in first} == first
    assert events(own) == events(folder)


def test_a_config_that_had_failed_is_replaced_once_it_has_a_result(
    own_study: Run, resumed: Callable[[], None], folder: Path, tmp_path: Path
) -> None:
    export_run(own_study, "tensorboard", out=tmp_path / "logs")
    resumed()
    export_run(own_study, "tensorboard", out=tmp_path / "logs")
    own = tmp_path / "logs" / LABELS[3]
    assert len(list(own.iterdir())) == 1
    end = metadata.parse_session_end_info_plugin_data(content(own, metadata.SESSION_END_INFO_TAG))
    assert end.status == STATUS_SUCCESS
    assert loaded(own).Scalars("train_loss")
    unchanged = {n: c for n, c in events(folder).items() if "fails" not in n and "/" in n}
    assert {n: c for n, c in events(tmp_path / "logs").items() if n in unchanged} == unchanged


def events(folder: Path) -> dict[str, bytes]:
    return {name: own for name, own in files(folder).items() if "tfevents" in name}


@pytest.mark.slow
def test_killed_at_any_operation_it_goes_on_and_duplicates_nothing(
    own_study: Run, keep: Callable[[int], None], tmp_path: Path
) -> None:
    keep(1)
    whole = export_run(own_study, "tensorboard", out=tmp_path / "whole")
    expected, number, killed = files(whole), 0, True
    with killing(own_study.path) as killed_at:
        while killed:
            own = tmp_path / f"logs{number}"
            killed = killed_at(number, own)
            # What TensorBoard sees at any time is whole.
            seen = events(own) if own.exists() else {}
            assert all(expected[name] == found for name, found in seen.items())
            export_run(own_study, "tensorboard", out=own)
            assert events(own) == events(whole)
            assert set(files(own)) == set(expected)
            number += 1
    assert number > 15


def test_half_a_line_of_the_record_is_no_config(
    own_study: Run, keep: Callable[[int], None], tmp_path: Path
) -> None:
    own = tmp_path / "logs"
    keep(2)
    export_run(own_study, "tensorboard", out=own)
    record = own / "mlpsubmit-export.jsonl"
    whole = record.read_bytes()
    record.write_bytes(whole[:-9])
    export_run(own_study, "tensorboard", out=own)
    *first, torn, last = record.read_bytes().splitlines()
    assert [*first, last] == whole.splitlines()
    assert last.startswith(torn)


def test_selected_configs_only(study: Run, tmp_path: Path) -> None:
    logs = export_run(
        study, "tensorboard", out=tmp_path, sel={"width": 8, "note": ["a/b", "fails"]}
    )
    own = sorted(path.name for path in logs.iterdir() if path.is_dir())
    assert own == sorted([LABELS[4], LABELS[7]])
