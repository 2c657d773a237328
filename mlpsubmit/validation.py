"""pydantic's errors as messages for users: the name, what was got, what is valid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ValidationError

__all__ = ["validation_errors"]


def validation_errors(
    error: ValidationError,
    model: type[BaseModel],
    label: Callable[[str, Sequence[int | str]], str],
) -> list[str]:
    """Return one message for each label that has errors, and for each line of a model's own error.

    Args:
        model: the model that was validated; its fields have descriptions.
        label: returns how the user writes a value, given its field and its position in that.
    """
    messages: dict[str, str] = {}
    for entry in error.errors():
        text = entry["msg"].removeprefix("Value error, ")
        if not entry["loc"]:
            messages.update({line: line for line in text.split("\n")})
            continue
        field, *inside = entry["loc"]
        name = label(str(field), inside)
        if inside[1:]:  # not the value at this position is wrong, but its name
            message = f"{name}: {text}"
        else:
            meaning = "" if inside else f" ({model.model_fields[str(field)].description})"
            message = f"{name}: got {entry['input']!r}; {text}{meaning}"
        messages.setdefault(name, message)  # for a wrong name the value does not matter
    return list(messages.values())
