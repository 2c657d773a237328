"""TensorBoard: an event file for each config, and one about all of them for the HParams tab."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_FAILURE,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from mlpsubmit.display.output import inert
from mlpsubmit.export.configs import Configs, ExportedConfig
from mlpsubmit.export.names import tags
from mlpsubmit.export.record import Record
from mlpsubmit.export.trackers import Options
from mlpsubmit.files import published, remove_leftovers
from mlpsubmit.results.source import Scalar

__all__ = ["EventFiles"]

#: The name of a file while it is written: none of which TensorBoard takes it for one of its own.
INCOMPLETE = "incomplete"

#: The most values of an axis that the HParams tab lists to choose from.
MOST_VALUES = 200


class EventFiles:
    """Writes event files, which TensorBoard reads.

    A file has the same bytes whenever it is written. The times in it are those of the launch plus
    the config's share of the training time of its pack.
    """

    def __init__(self, configs: Configs, folder: Path, options: Options) -> None:
        self.folder = folder
        self._configs = configs
        self._start = _seconds(configs.layout.attributes.get("created"))
        self._hparams = _types({**configs.values, **{n: [v] for n, v in configs.settings.items()}})
        self._written: Sequence[str] | None = None

    @property
    def about(self) -> Mapping[str, Any]:
        """Nothing more."""
        return {}

    @property
    def next_step(self) -> str:
        """The command that shows them."""
        return f"to see them: tensorboard --logdir {shlex.quote(str(self.folder))}"

    @property
    def _name(self) -> str:
        return f"events.out.tfevents.{int(self._start):010d}.mlpsubmit"

    def write(self, config: ExportedConfig) -> None:
        """Write the event file of a config, in a folder of its own."""
        folder = self.folder / config.label
        folder.mkdir(exist_ok=True)
        self._publish(folder, self._events(config))

    def end_pass(self, record: Record) -> None:
        """Write the file about all configs: which settings and which numbers there are."""
        names = list(record.names)
        if names != self._written:
            self._publish(self.folder, iter([Event(summary=self._experiment(names))]))
            self._written = names

    def _publish(self, folder: Path, events: Iterator[Event]) -> None:
        remove_leftovers(folder, INCOMPLETE.__eq__)
        content = io.BytesIO()
        records = RecordWriter(content)
        version = Event(wall_time=self._start, file_version="brain.Event:2")
        for event in (version, *events):
            event.wall_time = event.wall_time or self._start
            records.write(event.SerializeToString(deterministic=True))
        path = folder / self._name
        if path.exists() and path.read_bytes() == content.getvalue():
            return
        with published(path, called=INCOMPLETE) as temporary:
            temporary.write_bytes(content.getvalue())

    def _events(self, config: ExportedConfig) -> Iterator[Event]:
        """Yield the events of a config: settings, curves, numbers, and how it ended."""
        tag = tags(config.names)
        yield Event(summary=self._session_start(config))
        pace = config.seconds / max(config.steps, 1)
        for step, found in config.by_step():
            values = [_scalar(tag[name], value) for name, value in found.items()]
            if values:
                time = self._start + pace * (step + 1)
                yield Event(step=step, wall_time=time, summary=Summary(value=values))
        end = self._start + config.seconds
        numbers = [_scalar(tag[name], float(value)) for name, value in config.numbers.items()]
        if numbers:
            step = config.last_step
            yield Event(step=step, wall_time=end, summary=Summary(value=numbers))
        if config.status == "failed":
            yield Event(summary=text_pb("error", config.failure))
        status = STATUS_FAILURE if config.status == "failed" else STATUS_SUCCESS
        ended = SessionEndInfo(status=status, end_time_secs=end)
        tag_of_end = metadata.SESSION_END_INFO_TAG
        yield Event(wall_time=end, summary=_of_plugin(tag_of_end, session_end_info=ended))

    def _session_start(self, config: ExportedConfig) -> Summary:
        started = SessionStartInfo(group_name=config.label, start_time_secs=self._start)
        for name, value in (*config.axes.items(), *config.settings.items()):
            self._set(started.hparams[name], name, value)
        started.hparams["status"].string_value = config.status
        return _of_plugin(metadata.SESSION_START_INFO_TAG, session_start_info=started)

    def _set(self, target: Any, name: str, value: Scalar) -> None:
        """Set a value of protobuf, of one type for all configs."""
        kind = self._hparams[name]
        if kind == DATA_TYPE_BOOL:
            target.bool_value = value
        elif kind == DATA_TYPE_FLOAT64:
            target.number_value = value
        else:
            target.string_value = inert(value)

    def _experiment(self, names: Sequence[str]) -> Summary:
        """Return what the HParams tab has as columns: axes, settings, and numbers of results."""
        run = self._configs.run
        experiment = Experiment(
            name=run.name,
            description=f"mlpsubmit run {run.id}",
            time_created_secs=self._start,
        )
        for name, kind in self._hparams.items():
            own = list(dict.fromkeys(self._configs.values.get(name, ())))
            info = HParamInfo(name=name, type=kind, differs=len(own) > 1)
            if 0 < len(own) <= MOST_VALUES:
                for value in own:
                    self._set(info.domain_discrete.values.add(), name, value)
            experiment.hparam_infos.append(info)
        experiment.hparam_infos.append(
            HParamInfo(name="status", type=DATA_TYPE_STRING, differs=True)
        )
        for tag in tags(names).values():
            experiment.metric_infos.append(MetricInfo(name=MetricName(tag=tag)))
        return _of_plugin(metadata.EXPERIMENT_TAG, experiment=experiment)


def _types(values: Mapping[str, Sequence[Scalar]]) -> dict[str, int]:
    """Return the type of each setting."""
    kinds = {}
    for name, own in values.items():
        if all(isinstance(value, bool) for value in own):
            kinds[name] = DATA_TYPE_BOOL
        elif all(isinstance(value, (int, float)) for value in own):
            kinds[name] = DATA_TYPE_FLOAT64
        else:
            kinds[name] = DATA_TYPE_STRING
    return kinds


def _scalar(tag: str, value: float) -> Summary.Value:
    return Summary.Value(tag=tag, simple_value=value)


def _of_plugin(tag: str, **content: Any) -> Summary:
    """Return a summary of the HParams plugin.

    As :func:`metadata.create_summary_metadata` makes it, but always with the same bytes.
    """
    data = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString(deterministic=True)
    )
    described = SummaryMetadata(plugin_data=plugin)
    value = Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _seconds(created: object) -> float:
    """Return a time of UTC as seconds since 1970; 0 for what is none."""
    try:
        return datetime.fromisoformat(str(created).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
