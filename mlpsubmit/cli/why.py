"""``mlpsubmit why``: what makes the keys of two configs differ."""

from __future__ import annotations

from pathlib import Path

import click

from mlpsubmit.cli.options import json_option, open_selected, runs_dir_option
from mlpsubmit.display.output import echo
from mlpsubmit.errors import UserError

__all__ = ["why"]


@click.command()
@click.argument("run")
@click.argument("others", nargs=-1, metavar="[RUN] [CONFIG] [CONFIG]")
@json_option
@runs_dir_option
def why(run: str, others: tuple[str, ...], as_json: bool, runs_dir: Path | None) -> None:
    """Show which settings, functions or versions make the keys of configs differ.

    Equal keys mean that a result is reused. One CONFIG of a RUN is compared with the same one of
    the latest earlier run of its name; two CONFIGs with each other; of two RUNs, one CONFIG of
    each. A CONFIG is an index, or values of axes: width=8,lr=0.1. For whole runs, see diff.
    """
    from mlpsubmit.display.json_output import echo_json
    from mlpsubmit.runs import why as keys
    from mlpsubmit.runs.run_keys import is_config

    configs = [text for text in others if is_config(text)]
    runs = [run, *(text for text in others if text not in configs)]
    if len(runs) == 2 and not configs:
        raise UserError(
            f"why: got two runs and no config; to compare runs as a whole: mlpsubmit diff "
            f"{runs[0]} {runs[1]}"
        )
    if not others or len(runs) > 2 or len(configs) > 2:
        raise UserError(
            "why: should be RUN CONFIG, RUN CONFIG CONFIG, RUN RUN CONFIG or RUN RUN CONFIG "
            "CONFIG; a config is an index or values of axes, such as width=8,lr=0.1"
        )
    opened = [open_selected(selector, runs_dir).directory for selector in runs]
    if len(opened) == len(configs) == 1:
        found = keys.compare_with_earlier(opened[0], configs[0])
    else:
        selectors = (configs[0], configs[1] if len(configs) == 2 else None)
        found = keys.compare_configs((opened[0], opened[-1]), selectors)
    if as_json:
        echo_json("why/1", found.to_json())
        return
    for line in found.lines:
        echo(line)
