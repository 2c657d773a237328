"""Every setting of a training, with its default, its type and its meaning, as one closed model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from mlpsubmit.arguments import parse_bool
from mlpsubmit.errors import SpecError, did_you_mean, shown, validation_errors

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
PRECISIONS = ("fp32", "tf32", "bf16", "fp64")

#: Settings that may differ between the configs of a pack; all others are equal in it.
STACKED = frozenset({"lr", "gamma", "seed", "momentum", "weight_decay", "ema_smoother"})

#: Settings that no result depends on: they are no part of a config's key.
OUTSIDE_RESULTS = frozenset(
    {
        *("devices", "verbose", "pack_size", "checkpoint_minutes", "compile"),
        *("num_trials", "target_monomials"),
    }
)

#: Settings that have to fit together: see the model validators below.
TIED = frozenset({"loss_checkpoints", "percent_thresholds", "nesterov", "momentum"})

#: Spellings of MLPscape scripts that are accepted besides the names themselves.
_ALIASES = {"determinsitic": "deterministic", "parameterization": "parametrization"}


def python_number(value: Any) -> Any:
    """Return a numpy or torch scalar as a Python number; any other value as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", 1) == 0 else value


def _is_finite(value: Any) -> bool:
    """Return whether a value is a number that a float can hold."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and abs(value) <= sys.float_info.max


def _valid(parse: Callable[[Any], Any], valid: str) -> PlainValidator:
    """Return a validator that parses a value; its error lists what is valid."""

    def check(value: Any) -> Any:
        try:
            return parse(python_number(value))
        except (TypeError, ValueError):
            raise ValueError(f"should be {valid}") from None

    return PlainValidator(check)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError


def _integral(value: Any, minimum: int) -> int:
    """Return a number as an integer; so is 1e4, which people write for large counts."""
    _require(_is_finite(value) and value >= minimum and float(value).is_integer())
    return int(value)


def _integer(minimum: int, *others: str | None) -> PlainValidator:
    def parse(value: Any) -> Any:
        other = (value is None or isinstance(value, str)) and value in others
        return value if other else _integral(value, minimum)

    valid = "".join(f" or {other!r}" for other in others)
    return _valid(parse, f"an integer >= {minimum}{valid}")


def _at_most(limit: int) -> AfterValidator:
    def check(value: int) -> int:
        if value > limit:
            raise ValueError(f"should be at most {limit:,}")
        return value

    return AfterValidator(check)


def _number(bounds: str, within: Callable[[float], bool]) -> PlainValidator:
    def parse(value: Any) -> float:
        _require(_is_finite(value) and within(value))
        return float(value)

    return _valid(parse, f"a finite number {bounds}")


def _flag(*others: str) -> PlainValidator:
    def parse(value: Any) -> bool | str:
        if isinstance(value, str) and value.lower() in others:
            return value.lower()
        flag = parse_bool(value)
        _require(flag is not None)
        return bool(flag)

    return _valid(parse, ", ".join([*map(repr, others), "True or False"]))


def _choice(
    *names: str, other: str = "", is_other: Callable[[Any], bool] = callable
) -> PlainValidator:
    valid = ", ".join(repr(name) for name in names) + (f", or {other}" if other else "")

    def check(value: Any) -> Any:
        if isinstance(value, str) and value.lower() in names:
            return value.lower()
        if other and is_other(value):
            return value
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        raise ValueError(f"should be one of {valid}{hint}")

    return PlainValidator(check)


def _is_torch_optimizer(value: Any) -> bool:
    """Return whether this is a class, or its name: looked up where torch is imported."""
    named = isinstance(value, str) and value.isidentifier() and value[0].isupper()
    return named or callable(value)


def _entries(value: Any) -> list[Any]:
    """Return the entries of a list, numpy's and torch's as Python numbers; one value as a list."""
    single = isinstance(value, (str, Mapping)) or not isinstance(value, Iterable)
    return [python_number(entry) for entry in ([value] if single else value)]


def _thresholds(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    entries = _entries(python_number(value))
    for entry in entries:
        if not (_is_finite(entry) and entry > 0):
            which = "" if entry is value else f"; {entry!r} is not"
            raise ValueError(f"should be a list of positive finite numbers{which}")
    # Descending, the order in which a falling loss crosses them.
    return tuple(sorted({float(entry) for entry in entries}, reverse=True))


def log_spaced(schedule: int | str) -> int | None:
    """Return N of a schedule ``"log:N"``; None if the schedule is an interval in steps."""
    return int(schedule[4:]) if isinstance(schedule, str) else None


def _schedule(value: Any) -> int | str:
    if not isinstance(value, str):
        return _integral(value, 1)
    _require(value.startswith("log:") and value[4:].isdecimal() and len(value) <= 11)
    _require(2 <= int(value[4:]) <= 10**6)
    return value


def _devices(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str) and value.lower() == "all":
        return "all"
    indices = _entries(value)
    _require(all(type(index) is int and index >= 0 for index in indices))
    _require(0 < len(indices) == len(set(indices)))
    return tuple(indices)


def _betas(value: Any) -> tuple[float, float]:
    _require(isinstance(value, (list, tuple)))
    first, second = _entries(value)
    _require(all(_is_finite(beta) and 0 <= beta < 1 for beta in (first, second)))
    return float(first), float(second)


def _mapping(value: Any) -> dict[str, Any]:
    _require(isinstance(value, Mapping) and all(isinstance(key, str) for key in value))
    return dict(value)


Flag = Annotated[bool, _flag()]
Count = Annotated[int, _integer(1)]
#: Of one dimension of an array. Whether that fits into the memory, its device shows.
Size = Annotated[int, _integer(1), _at_most(10**9)]
Positive = Annotated[float, _number("> 0", lambda value: value > 0)]
Fraction = Annotated[float, _number(">= 0 and < 1", lambda value: 0 <= value < 1)]
Schedule = Annotated[
    int | str,
    _valid(_schedule, "an integer >= 1, or 'log:N' for N >= 2 log-spaced steps"),
]
OptionalSchedule = Annotated[
    int | str | None,
    _valid(
        lambda value: None if value is None else _schedule(value),
        "an integer >= 1, 'log:N' for N >= 2 log-spaced steps, or None",
    ),
]
Thresholds = Annotated[tuple[float, ...] | None, PlainValidator(_thresholds)]
Devices = Annotated[Any, _valid(_devices, "'all' or a list of distinct GPU indices such as [0, 1]")]
Betas = Annotated[
    tuple[float, float], _valid(_betas, "two numbers >= 0 and < 1, such as (0.9, 0.999)")
]
Optimizer = Annotated[
    Any,
    _choice(*OPTIMIZERS, other="a torch.optim class or its name", is_other=_is_torch_optimizer),
]
Named = Annotated[dict[str, Any], _valid(_mapping, "a dictionary whose keys are names")]


def _field(default: Any, meaning: str) -> Any:
    return Field(default=default, description=meaning)


class Hyperparameters(BaseModel):
    """The settings of one config; every name may be written in any case, with or without ``_``.

    Raises:
        SpecError: from :func:`validate`, listing every unknown name and every bad value at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    online: Flag = _field(True, "a fresh batch every step, or one fixed training set")
    n_samples: Size = _field(1024, "batch size online, training-set size offline")
    n_train: Size = _field(4000, "how many training samples exist to draw from")
    n_test: Size = _field(10_000, "size of the test set")
    num_trials: Count = _field(1, "the axis trial is range(NUM_TRIALS)")
    max_iter: Annotated[int, _integer(1), _at_most(10**12)] = _field(
        100_000, "gradient steps at most"
    )
    lr: Positive = _field(1e-2, "base learning rate")
    depth: Annotated[int, _integer(1), _at_most(10_000)] = _field(2, "number of hidden layers")
    width: Size = _field(8192, "units of each hidden layer")
    gamma: Positive = _field(1.0, "richness: outputs are divided by it")
    loss_checkpoints: Thresholds = _field((0.15, 0.1), "thresholds on the smoothed train loss")
    percent_thresholds: Thresholds = _field(None, "the same, as fractions of the first loss")
    ema_smoother: Fraction = _field(0.9, "smoothing of the recorded losses")
    onlythresholds: Flag = _field(True, "keep the final losses and grabs only, or whole traces")
    seed: Annotated[int, _integer(0)] = _field(42, "seed of the three random streams")
    deterministic: Flag = _field(True, "torch runs deterministic algorithms")
    devices: Devices = _field("all", "GPUs of this machine")
    verbose: Flag = _field(False, "losses as they fall, in the task's log")
    datasethps: Named = _field({}, "arguments for the data function")
    target_monomials: Any = _field(None, "the axis monomials")
    other_model_grabs: Named = _field({}, "grabs by name: {alias: function in grabs/}")
    other_model_kwargs: Named = _field({}, "per alias, the arguments of its grab")
    other_model_gram: Named = _field({}, "per alias, whether it takes a weight matrix")
    optimizer: Optimizer = _field("sgd", "sgd, adam, adamw, or any torch.optim class")
    momentum: Fraction = _field(0.0, "of sgd")
    nesterov: Flag = _field(False, "Nesterov momentum of sgd")
    weight_decay: Annotated[float, _number(">= 0", lambda value: value >= 0)] = _field(
        0.0, "L2, decoupled in adamw"
    )
    betas: Betas = _field((0.9, 0.999), "of adam and adamw")
    eps: Positive = _field(1e-8, "of adam and adamw, in units of the order of the gradients")
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
    eval_every: OptionalSchedule = _field(
        None, "steps between test losses, or 'log:N'; None: 1 offline, no test loss online"
    )
    grab_every: Schedule = _field(1, "steps between grabs, or 'log:N'")
    precision: Annotated[str, _choice(*PRECISIONS)] = _field(
        "fp32", "fp32, tf32, bf16 or fp64; unset it is fp64 where torch's default dtype is float64"
    )
    compile: Annotated[bool | str, _flag("auto")] = _field(
        "auto",
        "what makes steps fast: 'auto' where it pays, True, or False for plain vmap and autograd",
    )
    pack_size: Annotated[int | str, _integer(1, "auto")] = _field(
        "auto", "configs per pack at most; auto: what is fastest, and fits into a GPU's memory"
    )
    checkpoint_minutes: Positive = _field(
        5.0, "how often a pack's state is saved: less often where that would take 1% of the time"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_kind_of_threshold(cls, settings: Any) -> Any:
        """Drop the default of LOSS_CHECKPOINTS where PERCENT_THRESHOLDS is given."""
        if isinstance(settings, dict) and settings.get("percent_thresholds") is not None:
            return {"loss_checkpoints": None, **settings}
        return settings

    @model_validator(mode="before")
    @classmethod
    def _precision_of_the_process(cls, settings: Any) -> Any:
        """Set PRECISION to fp64 where it is not given and torch's default dtype is float64."""
        torch = sys.modules.get("torch")  # not imported for this: then its default is float32
        if isinstance(settings, dict) and torch and torch.get_default_dtype() == torch.float64:
            return {"precision": "fp64", **settings}
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
    def test_every(self) -> int | str | None:
        """The schedule of the test loss; None if it is not evaluated: online without EVAL_EVERY."""
        return 1 if self.eval_every is None and not self.online else self.eval_every

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
    """Build the hyperparameters from settings with names in any spelling.

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


def validate_one(name: str, value: Any) -> Any:
    """Return one value, parsed, of the hyperparameter with this canonical name.

    Raises:
        SpecError: listing what is valid.
    """
    field = Hyperparameters.model_fields[name]
    try:
        for validator in field.metadata:
            value = validator.func(value)
        return value
    except ValueError as error:
        raise SpecError(
            f"{name.upper()}: got {shown(value)}; {error} ({field.description})"
        ) from None
