"""pydantic's errors as messages for users: the name, the value, and what is valid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ValidationError

__all__ = ["validation_errors"]


def validation_errors(
    error: ValidationError,
    model: type[BaseModel],
    label: Callable[[str, Sequence[int | str]], str],
) -> list[str]:
    """Return a message for each label that has errors, and each line of the whole model's error.

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
        if inside[1:]:  # the name at this position is wrong, not the value
            message = f"{name}: {text}"
        else:
            meaning = "" if inside else f" ({model.model_fields[str(field)].description})"
            message = f"{name}: got {entry['input']!r}; {text}{meaning}"
        messages.setdefault(name, message)  # for a wrong name the value does not matter
    return list(messages.values())
