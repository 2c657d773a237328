"""Every setting of a training, with its default, its type and its meaning, as one closed model."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from mlpsubmit.arguments import parse_bool
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.validation import validation_errors

__all__ = [
    "OPTIMIZERS",
    "OUTSIDE_RESULTS",
    "PARAMETRIZATIONS",
    "STACKED",
    "TIED",
    "Hyperparameters",
    "canonical_name",
    "log_spaced",
    "python_number",
    "validate",
    "validate_one",
]

PARAMETRIZATIONS = ("mup", "ntp", "mfp", "mup-lr", "ntp-lr", "sp")

#: Optimizers that train a whole pack at once.
OPTIMIZERS = ("sgd", "adam", "adamw")
LOSSES = ("mse", "cross_entropy")
PRECISIONS = ("fp32", "tf32", "bf16")

#: Settings that may differ between the configs of a pack; all others are equal in it.
STACKED = frozenset({"lr", "gamma", "seed", "momentum", "weight_decay", "ema_smoother"})

#: Settings that no result depends on: they are no part of a config's key.
OUTSIDE_RESULTS = frozenset(
    {
        *("devices", "verbose", "pack_size", "checkpoint_minutes", "compile"),
        *("num_trials", "target_monomials"),
    }
)

#: Settings whose values have to fit together: see the model validators below.
TIED = frozenset({"loss_checkpoints", "percent_thresholds", "nesterov", "momentum"})

#: Spellings of MLPscape scripts that are accepted besides the names themselves.
_ALIASES = {"determinsitic": "deterministic", "parameterization": "parametrization"}


def python_number(value: Any) -> Any:
    """Return a numpy or torch scalar as a Python number; any other value as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", 1) == 0 else value


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    """Return whether a value is a number that a float can hold."""
    return _is_real(value) and abs(value) <= sys.float_info.max


def _is_integral(value: Any) -> bool:
    """Return whether a number is an integer; so is 1e4, which people write for large counts."""
    return _is_finite(value) and float(value).is_integer()


def _integer(minimum: int, *others: str | None) -> PlainValidator:
    valid = "".join(f" or {other!r}" for other in others)

    def check(value: Any) -> Any:
        value = python_number(value)
        if (value is None or isinstance(value, str)) and value in others:
            return value
        if not _is_integral(value) or value < minimum:
            raise ValueError(f"should be an integer >= {minimum}{valid}")
        return int(value)

    return PlainValidator(check)


def _number(
    above: float = -math.inf, *, at_least: float = -math.inf, below: float = math.inf
) -> PlainValidator:
    bounds = [f"> {above:g}"] if above > -math.inf else []
    bounds += [f">= {at_least:g}"] if at_least > -math.inf else []
    bounds += [f"< {below:g}"] if below < math.inf else []
    valid = " ".join(["a finite number", " and ".join(bounds)]).strip()

    def check(value: Any) -> Any:
        value = python_number(value)
        if not (_is_finite(value) and above < value < below and value >= at_least):
            raise ValueError(f"should be {valid}")
        return float(value)

    return PlainValidator(check)


def _flag(*others: str) -> PlainValidator:
    valid = ", ".join([*map(repr, others), "True or False"])

    def check(value: Any) -> bool | str:
        if isinstance(value, str) and value.lower() in others:
            return value.lower()
        flag = parse_bool(python_number(value))
        if flag is None:
            raise ValueError(f"should be {valid}")
        return flag

    return PlainValidator(check)


def _choice(*names: str, other: str = "") -> PlainValidator:
    valid = ", ".join(repr(name) for name in names) + (f", or {other}" if other else "")

    def check(value: Any) -> Any:
        if isinstance(value, str) and value.lower() in names:
            return value.lower()
        if other and callable(value):
            return value
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        raise ValueError(f"should be one of {valid}{hint}")

    return PlainValidator(check)


def _optimizer(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in OPTIMIZERS:
        return value.lower()
    if isinstance(value, str) and value.isidentifier() and value[0].isupper():
        return value  # a class of torch.optim: looked up where torch is imported
    if callable(value):
        return value
    raise ValueError(
        f"should be one of {', '.join(map(repr, OPTIMIZERS))}, or a torch.optim class or its name"
    )


def _thresholds(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    value = python_number(value)
    values = [value] if _is_real(value) else value
    if not isinstance(values, Iterable) or isinstance(values, (str, Mapping)):
        raise ValueError("should be a list of positive numbers")
    entries = [python_number(entry) for entry in values]
    for entry in entries:
        if not (_is_finite(entry) and entry > 0):
            raise ValueError(f"should be a list of positive finite numbers; {entry!r} is not")
    # Descending, the order in which a falling loss crosses them.
    return tuple(sorted({float(entry) for entry in entries}, reverse=True))


def log_spaced(schedule: int | str) -> int | None:
    """Return N of a schedule ``"log:N"``; None if the schedule is an interval in steps."""
    return int(schedule[4:]) if isinstance(schedule, str) else None


def _schedule(value: Any) -> int | str:
    value = python_number(value)
    if isinstance(value, str):
        if value.startswith("log:") and value[4:].isdigit() and int(value[4:]) >= 2:
            return value
    elif _is_integral(value) and value >= 1:
        return int(value)
    raise ValueError("should be an integer >= 1, or 'log:N' for N >= 2 log-spaced steps")


def _devices(value: Any) -> str | tuple[int, ...]:
    value = python_number(value)
    if isinstance(value, str) and value.lower() == "all":
        return "all"
    entries = [value] if isinstance(value, int) else value
    if isinstance(entries, Iterable) and not isinstance(entries, (str, Mapping)):
        indices = [python_number(entry) for entry in entries]
        integers = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices)
        if indices and integers and len(set(indices)) == len(indices):
            return tuple(indices)
    raise ValueError("should be 'all' or a list of distinct GPU indices such as [0, 1]")


def _betas(value: Any) -> tuple[float, float]:
    entries = tuple(map(python_number, value)) if isinstance(value, (list, tuple)) else ()
    if len(entries) == 2 and all(_is_real(b) and 0 <= b < 1 for b in entries):
        return float(entries[0]), float(entries[1])
    raise ValueError("should be two numbers >= 0 and < 1, such as (0.9, 0.999)")


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ValueError("should be a dictionary whose keys are names")


Flag = Annotated[bool, _flag()]
Count = Annotated[int, _integer(1)]
Schedule = Annotated[int | str, PlainValidator(_schedule)]
Thresholds = Annotated[tuple[float, ...] | None, PlainValidator(_thresholds)]
Named = Annotated[dict[str, Any], PlainValidator(_mapping)]


def _field(default: Any, meaning: str) -> Any:
    return Field(default=default, description=meaning)


class Hyperparameters(BaseModel):
    """The settings of one config; every name may be written in any case, with or without ``_``.

    Raises:
        SpecError: from :func:`validate`, listing every unknown name and every bad value at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    online: Flag = _field(True, "a fresh batch every step, or one fixed training set")
    n_samples: Count = _field(1024, "batch size online, training-set size offline")
    n_train: Count = _field(4000, "how many training samples exist to draw from")
    n_test: Count = _field(10_000, "size of the test set")
    num_trials: Count = _field(1, "the axis trial is range(NUM_TRIALS)")
    max_iter: Count = _field(100_000, "gradient steps at most")
    lr: Annotated[float, _number(0)] = _field(1e-2, "base learning rate")
    depth: Count = _field(2, "number of hidden layers")
    width: Count = _field(8192, "units of each hidden layer")
    gamma: Annotated[float, _number(0)] = _field(1.0, "richness: outputs are divided by it")
    loss_checkpoints: Thresholds = _field((0.15, 0.1), "thresholds on the smoothed train loss")
    percent_thresholds: Thresholds = _field(None, "the same, as fractions of the first loss")
    ema_smoother: Annotated[float, _number(at_least=0, below=1)] = _field(
        0.9, "smoothing of the recorded losses"
    )
    onlythresholds: Flag = _field(True, "keep the final losses and grabs only, or whole traces")
    seed: Annotated[int, _integer(0)] = _field(42, "seed of the three random streams")
    deterministic: Flag = _field(True, "torch runs deterministic algorithms")
    devices: Annotated[Any, PlainValidator(_devices)] = _field("all", "GPUs of this machine")
    verbose: Flag = _field(False, "losses as they fall, in the task's log")
    datasethps: Named = _field({}, "arguments for the data function")
    target_monomials: Any = _field(None, "the axis monomials")
    other_model_grabs: Named = _field({}, "grabs by name: {alias: function in grabs/}")
    other_model_kwargs: Named = _field({}, "per alias, the arguments of its grab")
    other_model_gram: Named = _field({}, "per alias, whether it takes a weight matrix")
    optimizer: Annotated[Any, PlainValidator(_optimizer)] = _field(
        "sgd", "sgd, adam, adamw, or any torch.optim class"
    )
    momentum: Annotated[float, _number(at_least=0, below=1)] = _field(0.0, "of sgd")
    nesterov: Flag = _field(False, "Nesterov momentum of sgd")
    weight_decay: Annotated[float, _number(at_least=0)] = _field(0.0, "L2, decoupled in adamw")
    betas: Annotated[tuple[float, float], PlainValidator(_betas)] = _field(
        (0.9, 0.999), "of adam and adamw"
    )
    eps: Annotated[float, _number(0)] = _field(1e-8, "of adam and adamw")
    optimizer_kwargs: Named = _field({}, "further arguments of a torch.optim class")
    loss: Annotated[Any, _choice(*LOSSES, other="a callable")] = _field(
        "mse", "mse, cross_entropy, or a callable(output, y) -> scalar"
    )
    parametrization: Annotated[Any, _choice(*PARAMETRIZATIONS, other="a callable")] = _field(
        "mup", "mup, ntp, mfp, mup-lr, ntp-lr, sp, or a callable(model, optimizer)"
    )
    centered: Flag = _field(True, "train f(x) - f0(x), f0 the network at initialisation")
    model: Annotated[Any, _choice("mlp", other="a callable that returns an nn.Module")] = _field(
        "mlp", "a callable returning an nn.Module"
    )
    d_out: Annotated[int | None, _integer(1, None)] = _field(
        None, "outputs of the model; by default as many as y has, 1 for y of shape (n,)"
    )
    record_every: Schedule = _field(1, "steps between recorded losses, or 'log:N'")
    eval_every: Schedule = _field(1, "steps between test losses, or 'log:N'")
    grab_every: Schedule = _field(1, "steps between grabs, or 'log:N'")
    precision: Annotated[str, _choice(*PRECISIONS)] = _field("fp32", "fp32, tf32, bf16")
    compile: Annotated[bool | str, _flag("auto")] = _field(
        "auto",
        "what makes steps fast: 'auto' where it pays, True, or False for plain vmap and autograd",
    )
    pack_size: Annotated[int | str, _integer(1, "auto")] = _field(
        "auto", "configs per pack at most; auto: what is fastest, and fits into a GPU's memory"
    )
    checkpoint_minutes: Annotated[float, _number(0)] = _field(
        5.0, "how often a pack's state is saved: less often where that would take 1% of the time"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_kind_of_threshold(cls, settings: Any) -> Any:
        """Drop the default of LOSS_CHECKPOINTS where PERCENT_THRESHOLDS is given."""
        if isinstance(settings, dict) and settings.get("percent_thresholds") is not None:
            return {"loss_checkpoints": None, **settings}
        return settings

    @model_validator(mode="after")
    def _exactly_one_kind_of_threshold(self) -> Hyperparameters:
        both = (self.loss_checkpoints, self.percent_thresholds)
        if (both[0] is None) == (both[1] is None):
            count = "neither" if both[0] is None else "both"
            raise ValueError(
                f"got {count} of LOSS_CHECKPOINTS and PERCENT_THRESHOLDS; set exactly one of the "
                "two (an empty list where no threshold is wanted)"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("NESTEROV needs MOMENTUM > 0; got MOMENTUM=0")
        return self

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The thresholds of whichever kind is set, in descending order."""
        absolute, relative = self.loss_checkpoints, self.percent_thresholds
        return (relative if absolute is None else absolute) or ()


def _squash(name: str) -> str:
    return name.lower().replace("_", "")


_CANONICAL = {_squash(name): name for name in Hyperparameters.model_fields} | _ALIASES


def canonical_name(name: str) -> str | None:
    """Return the lower-case name of a hyperparameter in any spelling; None if there is none."""
    return _CANONICAL.get(_squash(name))


def validate(settings: Mapping[str, Any]) -> Hyperparameters:
    """Build the hyperparameters from settings whose names are spelt in any way.

    Raises:
        SpecError: listing every unknown or doubly spelt name and every bad value.
    """
    errors: list[str] = []
    spelt: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        canonical = canonical_name(name)
        if canonical is None:
            known = Hyperparameters.model_fields
            errors.append(f"{name}: no such hyperparameter{did_you_mean(name, known)}")
        elif canonical in spelt:
            errors.append(f"{name} and {spelt[canonical]} are the same hyperparameter; keep one")
        else:
            spelt[canonical], values[canonical] = name, value
    try:
        hyperparameters = Hyperparameters(**values)
    except ValidationError as error:
        named = validation_errors(error, Hyperparameters, lambda name, _: name.upper())
        raise SpecError(errors + named) from None
    if errors:
        raise SpecError(errors)
    return hyperparameters


@functools.cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = Hyperparameters.model_fields[name]
    return TypeAdapter(Annotated.__class_getitem__((field.annotation, *field.metadata)))  # type: ignore[attr-defined]


def validate_one(name: str, value: Any) -> Any:
    """Return one value, parsed, of the hyperparameter with this canonical name.

    Raises:
        SpecError: listing what is valid.
    """
    try:
        return _adapter(name).validate_python(value)
    except ValidationError as error:
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        meaning = Hyperparameters.model_fields[name].description
        raise SpecError(f"{name.upper()}: got {value!r}; {text} ({meaning})") from None
