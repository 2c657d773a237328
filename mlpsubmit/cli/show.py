"""``mlpsubmit show``: a run's whole spec as launched, a spec before its launch, or one config."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.options import json_option, open_selected, parse_overrides, runs_dir_option
from mlpsubmit.display.output import inline
from mlpsubmit.display.text import counted, duration
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.store.owners import this_user

if TYPE_CHECKING:
    from mlpsubmit.jobs.store.run_directory import RunDirectory
    from mlpsubmit.runs.config_details import ConfigDetails
    from mlpsubmit.runs.description import Description, Setting

__all__ = ["show"]

#: What a spec's file ends with.
_SPECS = (".py", ".ipynb")


@click.command()
@click.argument("what", required=False, metavar="[RUN|SPEC]")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--config", metavar="CONFIG", help="One config: its index, key, or values of axes.")
@click.option("--sources", is_flag=True, help="Show the sources of the functions, too.")
@click.option("--sweep", "pick", metavar="NAME", help="Sweep to show, if SPEC defines several.")
@json_option
@runs_dir_option
def show(
    what: str | None,
    overrides: tuple[str, ...],
    config: str | None,
    sources: bool,
    pick: str | None,
    as_json: bool,
    runs_dir: Path | None,
) -> None:
    """Show the whole spec of a RUN as it was launched, or of a SPEC before it is.

    Of every setting it says whether it is the default, set in the spec or overridden; of functions
    the file and a hash, and with --sources their code, and that of all that they use. Nothing in a
    run is executed; a SPEC is, but its functions are not called.
    """
    from mlpsubmit.display.json_output import echo_json

    is_spec = what is not None and what.endswith(_SPECS)
    if not is_spec:
        _check_run(overrides, pick)
    elif config is not None:
        raise UserError(f"--config: goes with a run, and {what} is a spec; launch it first")
    if config is not None and sources:
        raise UserError("--sources: is of a whole run or spec; leave out --config")
    if config is not None:
        details = _config(what, config, runs_dir)
        if as_json:
            echo_json("show-config/1", details.to_json())
        else:
            _print(_config_lines(details))
        return
    found = _spec(Path(what or ""), overrides, pick, runs_dir) if is_spec else _run(what, runs_dir)
    if sources and found.run is not None:
        _check_sources(found.run)
    if as_json:
        echo_json("show/1", found.to_json())
    else:
        _print(_lines(found))
        if sources:
            _print(_sources(found))


def _check_run(overrides: Sequence[str], pick: str | None) -> None:
    given = [*overrides, *([] if pick is None else [f"--sweep {pick}"])]
    if given:
        raise UserError(
            f"{given[0]}: goes with a spec (mlpsubmit show spec.py {given[0]}); a run is shown as "
            "it was launched"
        )


def _check_sources(run: RunDirectory) -> None:
    """Raise a RunError if the sources of a run are lost or damaged."""
    from mlpsubmit.runs.run_keys import RunKeys

    _ = RunKeys(run).content


def _run(selector: str | None, runs_dir: Path | None) -> Description:
    from mlpsubmit.runs.description import described_run

    opened = open_selected(selector, runs_dir)
    status = opened.status()
    numbers = {name: getattr(status, name) for name in ("done", "failed", "missing", "reused")}
    return described_run(opened.directory, {"state": status.state, **numbers})


def _config(selector: str | None, config: str, runs_dir: Path | None) -> ConfigDetails:
    from mlpsubmit.runs.config_details import config_details

    opened = open_selected(selector, runs_dir)
    return config_details(opened.directory, opened.status(), config, opened.logs())


def _spec(
    spec: Path, overrides: Sequence[str], pick: str | None, runs_dir: Path | None
) -> Description:
    from mlpsubmit.runs.description import described_spec
    from mlpsubmit.spec.load import load_spec

    replaced = parse_overrides(overrides)
    sweep = load_spec(spec, pick)
    if replaced:
        sweep = sweep.overridden(replaced)
    from mlpsubmit.jobs import executors
    from mlpsubmit.runs.initial_weights import with_initial_weights
    from mlpsubmit.runs.launch import prepare
    from mlpsubmit.slurm_templates import SlurmRequest

    sweep = with_initial_weights(sweep.refreshed(), runs_dir)
    chosen = executors.choose("auto", sweep.base, None, SlurmRequest(None, {}, 0))
    return described_spec(prepare(sweep, chosen, runs_dir), spec)


# ---- as text -------------------------------------------------------------------------------------


def _print(lines: Iterator[Any]) -> None:
    from mlpsubmit.display.console import Console

    console = Console()
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal)


def _lines(found: Description) -> Iterator[Any]:
    """Yield the sweep: what it is, its axes, settings, functions and plan."""
    from mlpsubmit.display.console import text

    manifest, plan, state = found.manifest, found.plan, found.state
    name = (inline(manifest["name"]), "bold")
    if found.run is not None:
        done = f"{state['done']}/{manifest['configs']} configs done"
        yield text(name, f"  {found.run.id}  {state['state']}, {done}")
        yield text(f"in {found.run.path}, launched {manifest['created']}")
    else:
        yield text(name, f"  {counted(manifest['configs'], 'config')}, not launched")
        yield text(_what_a_launch_does(state, plan))
    yield from _origin(manifest["origin"])
    yield from _axes(found)
    own = found.hyperparameters
    given = [s for s in own if s.source != "default"]
    yield from _settings("hyperparameters", given, "all at their defaults")
    defaults = [f"{s.name}={inline(s.value)}" for s in own if s.source == "default"]
    yield _indented(f"defaults: {', '.join(defaults)}", "dim")
    if found.arguments:
        yield from _settings("arguments of functions", found.arguments, "")
    yield text(("functions", "bold"))
    yield from _table([_function(one, found.sources or {}) for one in manifest["sources"]])
    if manifest["reads"]:
        yield text(f"  INIT_WEIGHTS reads {', '.join(manifest['reads'])}")
    yield text(("plan", "bold"))
    yield from (text(f"  {line}") for line in _plan_lines(plan))


def _what_a_launch_does(state: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    run, packs = state["continues_run"], counted(state["missing_packs"], "pack")
    which = "a launch makes a new run" if run is None else f"a launch continues run {run}"
    reused = f", {plan['reused_configs']:,} reused" if plan["reused_configs"] else ""
    return f"{which}: {packs} to train{reused}"


def _origin(origin: Mapping[str, str]) -> Iterator[Any]:
    from mlpsubmit.display.console import text

    if command := origin.get("command"):
        yield text(f"command: {inline(command)}")
    commit = origin.get("git_commit", "")
    dirty = " with uncommitted changes" if origin.get("git_diff_hash") else ""
    git = f", git {commit[:12]}{dirty}" if commit else ""
    if origin.get("spec"):
        yield text(f"spec: {inline(origin['spec'])}{git}")
    names = ("mlpsubmit", "python", "torch", "numpy")
    yield text(f"versions: {', '.join(f'{n} {origin[n]}' for n in names if n in origin)}")


def _axes(found: Description) -> Iterator[Any]:
    from mlpsubmit.display.console import text

    manifest = found.manifest
    points = 1
    for axis in found.axes:
        points *= axis["points"]
    left_out = f" of {points:,} points: where= leaves out the others"
    where = left_out if manifest["included"] is not None else ""
    yield text(("axes", "bold"), f" ({counted(manifest['configs'], 'config')}{where})")
    rows: list[tuple[str, ...]] = []
    for axis in found.axes:
        names = list(axis["values"])
        values = [", ".join(map(inline, own)) for own in zip(*axis["values"].values(), strict=True)]
        if len(names) > 1:
            values = [f"({own})" for own in values]
        shown = values if len(values) <= 12 else [*values[:8], "...", values[-1]]
        source = "" if axis["source"] == "set" else axis["source"]
        listed = ", ".join(names)
        name = listed if len(names) == 1 else f"{axis['dimension']} ({listed})"
        rows.append((name, str(axis["points"]), source, ", ".join(shown)))
    if not any(row[2] for row in rows):
        rows = [(*row[:2], row[3]) for row in rows]
    yield from _table(rows)


def _settings(title: str, settings: Sequence[Setting], otherwise: str) -> Iterator[Any]:
    from mlpsubmit.display.console import text

    yield text((title, "bold"))
    if not settings:
        yield text(f"  {otherwise}")
    yield from _table([(s.name, s.source, inline(s.value)) for s in settings])


def _function(
    source: Mapping[str, Any], sources: Mapping[str, Mapping[str, str]]
) -> tuple[str, ...]:
    bound = ", ".join(f"{name}={value}" for name, value in source["arguments"].items())
    called = f"{source['name']}({bound})" if bound else source["name"]
    if called == "<lambda>":  # which does not say what it is
        text = next(iter(sources.get(source["place"], {}).values()), called).strip()
        called = text if "\n" not in text else called
    line = f":{source['line']}" if source["line"] else ""
    module = re.sub(r"\._\w+$", "", source["module"])  # a private module: its package exports it
    where = module or f"{_relative(source['file'])}{line}"
    return source["place"], source["hash"], f"{inline(called)}  {inline(where)}"


def _sources(found: Description) -> Iterator[Any]:
    """Yield the sources of all functions, each once."""
    from mlpsubmit.display.console import text

    first: dict[tuple[str, str], str] = {}
    yield text(("sources", "bold"))
    for place, own in (found.sources or {}).items():
        for part, source in own.items():
            yield text(f"  {inline(place)}: {inline(part)}")
            known = first.setdefault((part, source), place)
            lines = source.splitlines() if known == place else [f"as of {inline(known)}"]
            yield from (text(f"    {line}") for line in lines)


def _relative(file: str) -> str:
    """Return a path as it is seen from here, if it is below."""
    here = f"{Path.cwd()}/"
    return file.removeprefix(here)


def _indented(paragraph: str, style: str = "") -> Any:
    """Return a paragraph: indented lines in a terminal, one line elsewhere."""
    from rich.padding import Padding

    from mlpsubmit.display.console import Console, text

    if Console().is_terminal:
        return Padding(text((paragraph, style)), (0, 0, 0, 2))
    return text((f"  {paragraph}", style))


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[Any]:
    """Yield rows in columns; in a terminal the last cell goes on below where it is too long."""
    from rich.cells import cell_len
    from rich.table import Table

    from mlpsubmit.display.console import Console, text

    if Console().is_terminal:
        grid = Table.grid(padding=(0, 2, 0, 0))
        for column in range(len(rows[0]) if rows else 0):
            last = column == len(rows[0]) - 1
            grid.add_column(no_wrap=not last, overflow="fold")
        for first, *others in rows:
            grid.add_row(text(f"  {first}"), *map(text, others))
        yield grid
        return
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [c + " " * (w - cell_len(c)) for c, w in zip(row, widths, strict=True)]
        yield text(f"  {'  '.join(cells)}".rstrip())


def _plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    small, large = plan["smallest_pack_configs"], plan["largest_pack_configs"]
    size = str(small) if small == large else f"{small} to {large}"
    packs = counted(plan["packs"], "pack")
    configs = "config" if size == "1" else "configs"
    yield f"{packs} of {size} {configs}, {plan['flops']:.2g} FLOPs at most"
    if plan["reused_configs"]:
        yield f"{counted(plan['reused_configs'], 'config')} reused from earlier runs"
    threads = counted(plan["threads"], "thread")
    if set(plan["users"]) - {this_user()}:
        in_turn = (user for user, _ in itertools.groupby(plan["users"]))
        yield f"launched and resumed by {', then '.join(map(inline, in_turn))}"
    if plan["executor"]:
        yield f"{plan['executor']}: {counted(plan['tasks'], 'task')} of {threads}"
    if template := plan["template"]:
        left_out = ("name", "path", "description")
        given = {k: v for k, v in template.items() if v not in (None, [], {}) and k not in left_out}
        listed = ", ".join(f"{key}={value}" for key, value in given.items())
        yield f"template {template.get('name')}: {listed}"
    if plan["devices"]:
        yield f"on {', '.join(plan['devices'])}"


def _config_lines(found: ConfigDetails) -> Iterator[Any]:
    from mlpsubmit.display.console import text

    point = ", ".join(f"{name}={inline(value)}" for name, value in found.point.items())
    yield text(
        (f"config {found.index}", "bold"), f" of run {found.run} ({point or 'the only one'})"
    )
    yield text(f"key {found.key}")
    state = found.state
    if found.steps is not None:
        took = f", {duration(found.seconds or 0)} of training"
        state += f" after {counted(found.steps, 'step')}{took}"
    if found.progress is not None:
        state += f", step {found.progress[0]} of {found.progress[1]} {found.stack}".rstrip()
    yield text(f"{state}{', reused from an earlier run' if found.reused else ''}")
    if found.failure is not None:
        place = ": ".join(filter(None, (found.failure.where, found.failure.line)))
        yield text((f"  {inline(found.failure.error)}", "red"))
        yield text(*([f"  {inline(place)}"] if place else []))
    if found.pack:
        task = f", task {found.task}" if found.task else ""
        yield text(f"pack {found.pack}{task}")
    if found.device:
        yield text(f"trained on {inline(found.device)}")
    if found.log is not None:
        yield text(f"log {found.log}")
    if found.results:
        yield text(("results", "bold"))
        yield from _table([(name, _number(value)) for name, value in found.results.items()])
    yield text(("settings", "bold"))
    settings = ", ".join(f"{name}={inline(value)}" for name, value in found.settings.items())
    yield _indented(settings)


def _number(value: Any) -> str:
    if isinstance(value, dict):
        found = (
            (threshold, "never" if s is None else f"at step {s}") for threshold, s in value.items()
        )
        return ", ".join(f"{threshold} {when}" for threshold, when in found)
    return f"{value:.6g}" if isinstance(value, float) else inline(value)
