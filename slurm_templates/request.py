"""A user's request: a template by its name, and changes to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlpsubmit.slurm_templates.locate import find_template
from mlpsubmit.slurm_templates.template import Template, as_option

__all__ = ["SlurmRequest"]


@dataclass(frozen=True)
class SlurmRequest:
    """The SLURM settings of one command, or one call from Python.

    Attributes:
        template: the name or the file of a template; None if none is given.
        changes: keys of the template, and values that replace its own.
        retries: how often a SLURM job resumes what is missing.
    """

    template: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    retries: int = 0

    @property
    def options(self) -> tuple[str, ...]:
        """The command-line options of the settings that are given; empty for none."""
        named = [] if self.template is None else ["template"]
        tried = ["retries"] if self.retries else []
        return tuple(map(as_option, (*named, *self.changes, *tried)))

    def resolve(self, base: Template | None = None) -> Template:
        """Return the requested template with the changes.

        Args:
            base: the template if none is given; by default the template ``default``.

        Raises:
            UserError: for a template that does not exist or is invalid.
            SpecError: for invalid changes, listed together.
        """
        if self.template is not None or base is None:
            base = find_template(self.template)
        return base.overridden(**self.changes)
