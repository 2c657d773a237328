"""What a script says by name, and which of it a function takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlpsubmit.arguments import declared, function_name, takes_all
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec import hyperparameters as hp

__all__ = ["Match", "Script"]


class Match(NamedTuple):
    """The first arguments of :class:`mlpsubmit.compat.functions.ByName`."""

    func: Callable[..., Any]
    supplied: tuple[str, ...]
    settings: dict[str, str]
    constants: dict[str, Any]


@dataclass(frozen=True)
class Script:
    """What a script says by name.

    Attributes:
        settings: what the sweep knows: iterators, and the hyperparameters that the script sets,
            {as the script spells it: name in the sweep}.
        constants: whatever else stands in global_config, by name.
        quiet: what no result depends on, unless a function asks for it by name.
    """

    settings: Mapping[str, str]
    constants: Mapping[str, Any]
    quiet: Mapping[str, Any] = field(default_factory=dict)

    def match(
        self,
        place: str,
        function: Callable[..., Any],
        supplied: Iterable[str] = (),
        *,
        declared_only: bool = False,
    ) -> Match:
        """Return what a function takes: what it declares, or everything if it has ``**kwargs``.

        Args:
            place: what messages call it.
            supplied: what the train loop supplies; it wins over settings, and these over constants.
            declared_only: hand nothing to ``**kwargs``.

        Raises:
            SpecError: where it needs what nobody gives.
        """
        wanted = sorted(declared(function))
        if takes_all(function) and not declared_only:
            wanted = [*supplied, *self.settings, *self.constants, *wanted]
        constants = {**self.quiet, **self.constants}
        match = Match(function, tuple(name for name in supplied if name in wanted), {}, {})
        required, lacking = _required(function), []
        for name in dict.fromkeys(wanted):
            if name in match.supplied:
                continue
            setting = self._setting(name, name in required)
            if setting is not None:
                match.settings[name] = setting
            elif name in constants:
                match.constants[name] = constants[name]
            elif name in required:
                lacking.append(self._lacks(place, function, name, supplied))
        if lacking:
            raise SpecError(lacking)
        return match

    def _setting(self, name: str, required: bool) -> str | None:
        """Return which setting of the sweep a name means.

        A hyperparameter that the script leaves at its default counts where it cannot be done
        without; else the function has a default of its own.
        """
        if name in self.settings:
            return self.settings[name]
        canonical = hp.canonical_name(name)
        given = canonical in self.settings.values()
        absent = name not in self.constants and name not in self.quiet
        return canonical if given or (required and absent) else None

    def _lacks(
        self, place: str, function: Callable[..., Any], name: str, supplied: Iterable[str]
    ) -> str:
        known = sorted({*self.settings, *self.constants, *self.quiet, *supplied})
        return (
            f"{place}: {function_name(function)} needs {name!r}{did_you_mean(name, known)}; it "
            f"can have {', '.join(known)}; give it in global_config, as an iterator, or with a "
            "default"
        )


def _required(function: Callable[..., Any]) -> set[str]:
    """Return the names of the arguments that have no default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.default is p.empty} & declared(function)
