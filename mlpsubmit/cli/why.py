"""``mlpsubmit why``: what makes the keys of two configs differ."""

from __future__ import annotations

from pathlib import Path

import click

from mlpsubmit.cli.options import open_selected, runs_dir_option
from mlpsubmit.display.output import echo
from mlpsubmit.errors import UserError

__all__ = ["why"]


@click.command()
@click.argument("run")
@click.argument("others", nargs=-1, metavar="[RUN] [CONFIG] [CONFIG]")
@runs_dir_option
def why(run: str, others: tuple[str, ...], runs_dir: Path | None) -> None:
    """Show which settings, functions or versions make the keys of configs differ.

    Equal keys mean that a result is reused. One CONFIG of a RUN is compared with the same one of
    the latest earlier run of its name; two CONFIGs with each other; two RUNs as a whole, or by one
    CONFIG of each. A CONFIG is an index, or values of axes: width=8,lr=0.1.
    """
    from mlpsubmit.runs import why as keys

    configs = [text for text in others if "=" in text or text.isdecimal()]
    runs = [run, *(text for text in others if text not in configs)]
    if not others or len(runs) > 2 or len(configs) > 2:
        raise UserError(
            "why: should be RUN CONFIG, RUN CONFIG CONFIG, RUN RUN, RUN RUN CONFIG or RUN RUN "
            "CONFIG CONFIG; a config is an index or values of axes, such as width=8,lr=0.1"
        )
    opened = [open_selected(selector, runs_dir).directory for selector in runs]
    first, second = opened[0], opened[-1]
    if not configs:
        lines = keys.compare_runs(first, second)
    elif len(opened) == len(configs) == 1:
        lines = keys.compare_with_earlier(first, configs[0])
    else:
        selectors = (configs[0], configs[1] if len(configs) == 2 else None)
        lines = keys.compare_configs((first, second), selectors)
    for line in lines:
        echo(line)
