"""Every setting of a training, with its default, its type and its meaning, as one closed model."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlpsubmit.errors import SpecError, did_you_mean, explained, shown, validation_errors
from mlpsubmit.spec.metrics import (
    Metric,
    Metrics,
    MetricThresholds,
    StopOn,
    crossing_order,
    with_asked_for,
)
from mlpsubmit.spec.optimizer_settings import OPTIMIZERS, default_of
from mlpsubmit.spec.rules import NOT_USED_BY_ALL, RULES, untraced, untraced_errors, unused_errors
from mlpsubmit.spec.setting_types import (
    Betas,
    Count,
    Devices,
    Factors,
    Flag,
    Fraction,
    InitWeights,
    NonNegative,
    OptionalSchedule,
    Positive,
    Schedule,
    Size,
    SizeOrNone,
    StringKeyedDict,
    Thresholds,
    WeightSchedule,
    at_most,
    choice,
    flag,
    integer,
    optional,
)

__all__ = [
    "OF_AXES",
    "OPTIMIZERS",
    "OUTSIDE_RESULTS",
    "PARAMETRIZATIONS",
    "STACKED",
    "TECHNICAL",
    "UNSWEPT",
    "Hyperparameters",
    "canonical_name",
    "parsed",
    "suggested",
    "validate",
    "validate_one",
]

PARAMETRIZATIONS = ("mup", "ntp", "mfp", "mup-lr", "ntp-lr", "sp")

LOSSES = ("mse", "cross_entropy", "hinge", "logistic", "mae", "huber")
LR_SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("fp32", "tf32", "bf16", "fp64")

#: Settings that may differ between the configs of a pack; all others are equal in it.
STACKED = frozenset(
    {
        *("lr", "gamma", "seed", "momentum", "weight_decay", "ema_smoother"),
        *("lr_schedule", "warmup_steps", "lr_final_factor", "lr_factors", "grad_clip_norm"),
        "init_weights",
    }
)

#: Settings of how a sweep is computed, which functions do not get.
TECHNICAL = frozenset(
    {"devices", "verbose", "pack_size", "checkpoint_minutes", "keep_state", "compile"}
)

#: Other names of axes. A function that declares one gets it, and it is part of the keys then.
OF_AXES = frozenset({"num_trials", "target_monomials"})

#: Settings that no result depends on: they are no part of a config's key.
OUTSIDE_RESULTS = TECHNICAL | OF_AXES

#: Settings that are no axis: results along it would be equal.
UNSWEPT = OUTSIDE_RESULTS | {"save_weights"}

#: Spellings of MLPscape scripts that are accepted besides the names themselves.
_ALIASES = {"determinsitic": "deterministic", "parameterization": "parametrization"}


def _is_torch_optimizer(value: Any) -> bool:
    """Return whether this is a class, or its name: looked up where torch is imported."""
    named = isinstance(value, str) and value.isidentifier() and value[0].isupper()
    return named or callable(value)


Optimizer = Annotated[
    Any,
    choice(*OPTIMIZERS, other="a torch.optim class or its name", is_other=_is_torch_optimizer),
]


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
    n_test: SizeOrNone = _field(10_000, "size of the test set; 0: there is none")
    num_trials: Count = _field(1, "the axis trial is range(NUM_TRIALS)")
    max_iter: Annotated[int, integer(1), at_most(10**12)] = _field(
        100_000, "gradient steps at most"
    )
    lr: Positive = _field(1e-2, "base learning rate")
    lr_schedule: Annotated[
        Any, choice(*LR_SCHEDULES, other="a callable of the step that returns a factor of LR")
    ] = _field("constant", "constant, linear, cosine, or a callable(step) -> factor of LR")
    warmup_steps: Annotated[int, integer(0), at_most(10**12)] = _field(
        0, "first steps, over which LR grows linearly"
    )
    lr_final_factor: NonNegative = _field(0.0, "of LR at MAX_ITER, under linear and cosine")
    lr_factors: Factors = _field(
        {}, "factors of LR by patterns of parameter names; 0 freezes parameters"
    )
    grad_clip_norm: Annotated[float | None, optional(Positive)] = _field(
        None, "gradients of a larger norm are scaled down to it"
    )
    depth: Annotated[int, integer(1), at_most(10_000)] = _field(2, "number of hidden layers")
    width: Size = _field(8192, "units of each hidden layer")
    gamma: Positive = _field(1.0, "richness: outputs are divided by it")
    loss_checkpoints: Thresholds = _field((0.15, 0.1), "thresholds on the smoothed train loss")
    percent_thresholds: Thresholds = _field(None, "the same, as fractions of the first loss")
    metrics: Metrics = _field(
        {}, "measured beside the losses: accuracy, error, margin, r2, {name: (f, 'max' or 'min')}"
    )
    metric_thresholds: MetricThresholds = _field(
        {}, "thresholds on train_<metric>, test_<metric> and test_loss, by name"
    )
    stop_on: StopOn = _field(
        "train_loss",
        "the quantity whose last threshold stops a config: train_loss, a name in "
        "METRIC_THRESHOLDS, or None",
    )
    ema_smoother: Fraction = _field(0.9, "smoothing of the recorded losses")
    onlythresholds: Flag = _field(True, "keep the final losses and grabs only, or whole traces")
    init_weights: InitWeights = _field(
        None, "trained networks to start from: from_run('name', sel={...})"
    )
    seed: Annotated[int, integer(0)] = _field(42, "seed of all random streams")
    deterministic: Flag = _field(True, "torch runs deterministic algorithms")
    devices: Devices = _field("all", "GPUs of this machine")
    verbose: Flag = _field(False, "losses as they fall, in the task's log")
    datasethps: StringKeyedDict = _field({}, "arguments for the data function")
    target_monomials: Any = _field(None, "the axis monomials")
    other_model_grabs: StringKeyedDict = _field({}, "grabs by name: {alias: function in grabs/}")
    other_model_kwargs: StringKeyedDict = _field({}, "per alias, the arguments of its grab")
    other_model_gram: StringKeyedDict = _field({}, "per alias, whether it takes a weight matrix")
    optimizer: Optimizer = _field(
        "sgd", "sgd, adam, adamw, muon, lion, rmsprop, or any torch.optim class"
    )
    momentum: Annotated[float | None, optional(Fraction)] = _field(
        None, "of sgd, muon and rmsprop; None: 0.95 of muon, 0 of the others"
    )
    nesterov: Annotated[bool | None, optional(Flag)] = _field(
        None, "Nesterov momentum of sgd and muon; None: True of muon, False of sgd"
    )
    weight_decay: Annotated[float | None, optional(NonNegative)] = _field(
        None,
        "L2, decoupled in adamw, muon and lion; None: 0.01 of adamw, 0 of the other five, of a "
        "torch.optim class its own",
    )
    betas: Annotated[tuple[float, float] | None, optional(Betas)] = _field(
        None, "of adam, adamw, muon and lion; None: (0.9, 0.99) of lion, (0.9, 0.999) of the others"
    )
    eps: Annotated[float | None, optional(Positive)] = _field(
        None,
        "of adam, adamw, muon and rmsprop, in units of the order of the gradients; None: 1e-8, of "
        "a torch.optim class its own",
    )
    optimizer_kwargs: StringKeyedDict = _field(
        {}, "further arguments of a torch.optim class; alpha of rmsprop, ns_steps of muon"
    )
    loss: Annotated[
        Any, choice(*LOSSES, other="a callable(output, y) or (output, y, params) -> scalar")
    ] = _field(
        "mse",
        "mse, cross_entropy, hinge, logistic, mae, huber, or a callable(output, y) or "
        "(output, y, params) -> scalar",
    )
    parametrization: Annotated[
        Any, choice(*PARAMETRIZATIONS, other="a callable(model, optimizer)")
    ] = _field("mup", "mup, ntp, mfp, mup-lr, ntp-lr, sp, or a callable(model, optimizer)")
    centered: Flag = _field(True, "train f(x) - f0(x), f0 the network at initialisation")
    model: Annotated[Any, choice("mlp", other="a callable that returns an nn.Module")] = _field(
        "mlp", "a callable returning an nn.Module"
    )
    d_out: Annotated[int | None, integer(1, None)] = _field(
        None, "outputs of the model; by default as many as y has, 1 for y of shape (n,)"
    )
    record_every: Schedule = _field(
        1,
        "steps between recorded losses, or 'log:N'; the final ones alone with ONLYTHRESHOLDS=True",
    )
    eval_every: OptionalSchedule = _field(
        None, "steps between test losses, or 'log:N'; None: 1 offline, no test loss online"
    )
    grab_every: Schedule = _field(
        1, "steps between grabs, or 'log:N'; the final ones alone with ONLYTHRESHOLDS=True"
    )
    save_weights: WeightSchedule = _field(
        None, "weights kept with the results: 'final', steps between them, or 'log:N'"
    )
    precision: Annotated[str, choice(*PRECISIONS)] = _field(
        "fp32", "fp32, tf32, bf16 or fp64; unset it is fp64 where torch's default dtype is float64"
    )
    compile: Annotated[bool | str, flag("auto")] = _field(
        "auto",
        "what makes steps fast: 'auto' where it pays, True, or False for plain vmap and autograd",
    )
    pack_size: Annotated[int | str, integer(1, "auto")] = _field(
        "auto", "configs per pack at most; auto: what is fastest, and fits into a GPU's memory"
    )
    checkpoint_minutes: Positive = _field(
        5.0, "how often a pack's state is saved: less often where that would take 1% of the time"
    )
    keep_state: Flag = _field(
        False, "keep states, from which a larger MAX_ITER or further thresholds continue"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_kind_of_threshold(cls, settings: Any) -> Any:
        return _one_threshold_default(settings) if isinstance(settings, dict) else settings

    @model_validator(mode="before")
    @classmethod
    def _precision_of_the_process(cls, settings: Any) -> Any:
        """Set PRECISION to fp64 where it is not given and torch's default dtype is float64."""
        torch = sys.modules.get("torch")  # not imported for this: then its default is float32
        if isinstance(settings, dict) and torch and torch.get_default_dtype() == torch.float64:
            return {"precision": "fp64", **settings}
        return settings

    def of_optimizer(self, name: str) -> Any:
        """Return a setting of the optimizer: where it is None, the optimizer's default."""
        value = getattr(self, name)
        return default_of(self.optimizer, name) if value is None else value

    @property
    def has_lr_schedule(self) -> bool:
        """Whether the learning rate changes from step to step."""
        return self.lr_schedule != "constant" or self.warmup_steps > 0

    @property
    def test_every(self) -> int | str | None:
        """The schedule of the test loss and test metrics; None if they are not evaluated.

        That is with N_TEST=0; and online without EVAL_EVERY, unless one of them has thresholds.
        """
        if self.n_test == 0:
            return None
        asked = any(key.startswith("test_") for key in self.metric_thresholds)
        return 1 if self.eval_every is None and (asked or not self.online) else self.eval_every

    @property
    def measured(self) -> dict[str, Metric]:
        """The metrics by name: METRICS, and the built-in ones that have thresholds."""
        return with_asked_for(self.metrics, self.metric_thresholds)

    @property
    def ordered_thresholds(self) -> dict[str, tuple[float, ...]]:
        """METRIC_THRESHOLDS, each list in the order of crossing."""
        found = self.metric_thresholds
        return {key: crossing_order(self.measured, key, found[key]) for key in found}

    @property
    def stops(self) -> bool:
        """Whether a threshold can end a config."""
        return bool(self.thresholds if self.stop_on == "train_loss" else self.stop_on)

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


def validate(
    settings: Mapping[str, Any], on_axes: Mapping[str, Sequence[Any]] | None = None
) -> Hyperparameters:
    """Build the hyperparameters from settings with names in any spelling.

    Args:
        on_axes: all values of those settings of which this is one config of several; none where
            they are not known. Whether these fit the others is not checked.

    Raises:
        SpecError: listing every unknown or doubly spelt name, every bad value, and what does not
            fit together.
    """
    given, errors = _by_name(settings)
    hyperparameters, bad = None, dict[str, Any]()
    try:
        hyperparameters = Hyperparameters(**given)
        values = dict(hyperparameters)
    except ValidationError as error:
        errors += validation_errors(error, Hyperparameters, lambda name, _: name.upper())
        values, bad = parsed(given)
    errors += _misfits(values, bad, on_axes or {})
    errors += _untraced(given, values, bad, on_axes or {})
    if hyperparameters is None or errors:
        raise SpecError(errors)
    return hyperparameters


def _by_name(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return settings by their canonical names, and the errors of other names."""
    errors: list[str] = []
    spelt: dict[str, str] = {}
    given: dict[str, Any] = {}
    for name, value in settings.items():
        canonical = canonical_name(name)
        if canonical is None:
            known = Hyperparameters.model_fields
            errors.append(f"{name}: no such hyperparameter{suggested(name, known)}")
        elif canonical in spelt:
            errors.append(f"{name} and {spelt[canonical]} are the same hyperparameter; keep one")
        else:
            spelt[canonical], given[canonical] = name, value
    return given, errors


def _misfits(
    values: Mapping[str, Any], bad: Mapping[str, Any], on_axes: Mapping[str, Sequence[Any]]
) -> list[str]:
    """Return the errors of settings that do not fit together, and of those that nothing uses."""
    errors: list[str] = []
    for rule in RULES:
        if on_axes.keys().isdisjoint(rule.reads):
            errors += rule.errors(values, bad)
    optimizers, lr_schedules = (
        on_axes.get(name, [values[name]] if name in values else [])
        for name in ("optimizer", "lr_schedule")
    )
    fixed = _changed(values, NOT_USED_BY_ALL - on_axes.keys())
    return errors + unused_errors(fixed, optimizers, lr_schedules)


def _untraced(
    given: Mapping[str, Any],
    values: Mapping[str, Any],
    bad: Mapping[str, Any],
    on_axes: Mapping[str, Sequence[Any]],
) -> list[str]:
    """Return the errors of settings of traces, where the spec does not say whether it keeps any."""
    if "onlythresholds" in {*given, *on_axes}:
        return []
    of_metrics = ("metrics", "metric_thresholds")
    measures = any(name in bad or name in on_axes or values[name] for name in of_metrics)
    return untraced_errors(_changed(values, untraced(measures) - on_axes.keys()))


def _changed(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return those settings of some names that are not at their default."""
    fields = Hyperparameters.model_fields
    return {
        name: values[name]
        for name in values.keys() & {*names}
        if values[name] != fields[name].default
    }


def parsed(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings parsed, with the defaults of all others, and the bad ones as given.

    Names that are none of a hyperparameter are left out.
    """
    values = {name: field.default for name, field in Hyperparameters.model_fields.items()}
    bad: dict[str, Any] = {}
    given = {canonical_name(name): value for name, value in settings.items()}
    for name, value in _one_threshold_default(given).items():
        if name is not None:
            try:
                values[name] = validate_one(name, value)
            except SpecError:
                bad[name] = value
                del values[name]
    return values, bad


def _one_threshold_default(settings: dict[Any, Any]) -> dict[Any, Any]:
    """Drop the default of LOSS_CHECKPOINTS where PERCENT_THRESHOLDS is given."""
    if settings.get("percent_thresholds") is not None:
        return {"loss_checkpoints": None, **settings}
    return settings


#: What settings are called elsewhere, and how they are set here.
_ELSEWHERE = {
    **dict.fromkeys(("batch_size", "batchsize", "bs"), "N_SAMPLES"),
    **dict.fromkeys(("learning_rate", "learningrate", "eta", "step_size"), "LR"),
    **dict.fromkeys(("steps", "n_steps", "num_steps", "max_steps", "iterations"), "MAX_ITER"),
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs", "max_epochs"), "MAX_ITER, in steps"),
    **dict.fromkeys(("activation", "act", "act_fn", "activation_fn"), "NONLINEARITY"),
    **dict.fromkeys(("hidden", "hidden_size", "hidden_dim", "n_hidden", "units"), "WIDTH"),
    **dict.fromkeys(("layers", "n_layers", "num_layers", "hidden_layers"), "DEPTH"),
    **dict.fromkeys(("wd", "l2", "decay"), "WEIGHT_DECAY"),
    **dict.fromkeys(("seeds", "n_seeds", "num_seeds", "repeats", "n_trials"), "NUM_TRIALS"),
    **dict.fromkeys(("criterion", "loss_fn", "loss_function"), "LOSS"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "LR_SCHEDULE"),
    **dict.fromkeys(("clip", "grad_clip", "clip_grad_norm", "max_grad_norm"), "GRAD_CLIP_NORM"),
    **dict.fromkeys(("net", "network", "architecture"), "MODEL"),
    **dict.fromkeys(("dtype", "default_dtype"), "PRECISION"),
    **dict.fromkeys(("device", "gpus"), "DEVICES"),
    **dict.fromkeys(("axis", "sweep", "params", "grid"), "axes="),
    **dict.fromkeys(("batch_fn", "batch_function"), "batchfn="),
    **dict.fromkeys(("dataset", "datasets"), "data="),
    **dict.fromkeys(("grab", "measure", "measurements", "callbacks"), "grabs="),
    **dict.fromkeys(("filter", "condition"), "where="),
}


def suggested(name: str, known: Iterable[str]) -> str:
    """Return which name is meant, by what settings are called elsewhere or by its spelling."""
    here = _ELSEWHERE.get(name.lower())
    return f" (here it is {here})" if here else did_you_mean(name, known)


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
        valid = explained(str(error), field.description or "")
        raise SpecError(f"{name.upper()}: got {shown(value)}; {valid}") from None
