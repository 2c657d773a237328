"""``mlpsubmit why``: what makes the keys of two configs differ."""

import click

why = click.Command("why")
