"""What a user asks SLURM for: a template by its name, and changes to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlpsubmit.slurm_templates.locate import find_template
from mlpsubmit.slurm_templates.template import Template, as_option

__all__ = ["SlurmRequest"]


@dataclass(frozen=True)
class SlurmRequest:
    """What one command, or one call from Python, says about SLURM.

    Attributes:
        template: the name or the file of a template; None where none is named.
        changes: keys of the template and the values that take the place of its own.
        retries: how often SLURM is to resume by itself what is missing.
    """

    template: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    retries: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is said at all."""
        return not self.options

    @property
    def options(self) -> tuple[str, ...]:
        """The options of the command line that say all this."""
        named = [] if self.template is None else ["template"]
        tried = ["retries"] if self.retries else []
        return tuple(map(as_option, (*named, *self.changes, *tried)))

    def resolve(self, base: Template | None = None) -> Template:
        """Return the template that is asked for, with the changes made.

        Args:
            base: what holds where no template is named; by default the template ``default``.

        Raises:
            UserError: for a template that does not exist or is mistaken.
            SpecError: for changes that are mistaken, listed together.
        """
        if self.template is not None or base is None:
            base = find_template(self.template)
        return base.overridden(**self.changes)
