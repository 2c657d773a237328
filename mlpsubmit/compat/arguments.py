"""The command line of a script: a flag per hyperparameter, and MLPscape's further flags."""

from __future__ import annotations

import argparse
import ast
import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from mlpsubmit.arguments import parse_bool
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec import hyperparameters as hp

__all__ = ["DEFAULT_EXPT_NAME", "base_args", "parse_args"]

DEFAULT_EXPT_NAME = "mlp-learning-curves"

#: Hyperparameters that every script finds in its arguments, as in MLPscape. Any other is there
#: only where its flag is given.
_ALWAYS = (
    *("online", "n_samples", "n_train", "n_test", "num_trials", "max_iter", "lr", "depth", "width"),
    *("gamma", "loss_checkpoints", "ema_smoother", "onlythresholds", "seed", "deterministic"),
    *("devices", "verbose", "datasethps", "target_monomials"),
    *("other_model_grabs", "other_model_kwargs", "other_model_gram"),
)

#: Their defaults where those of the hyperparameters differ.
_DEFAULTS: dict[str, Any] = {
    "n_samples": [1024],
    "loss_checkpoints": [0.15, 0.1],
    "datasethps": {
        "normalized": True,
        "cutoff_mode": 40_000,
        "d": 200,
        "offset": 6,
        "alpha": 2.0,
        "noise_size": 1,
        "yoffset": 1.2,
        "beta": 1.2,
        "classes": None,
        "binarize": False,
        "weight_variance": 1,
        "bias_variance": 1,
    },
}

#: Second names, of the flag and of the argument: those of modelscape, and MLPscape's misspelling.
_SECOND_NAMES = {"WIDTH": "width", "DEPTH": "depth", "DETERMINISTIC": "DETERMINSITIC"}

#: Names that MLPscape spells in lower case.
_LOWER = ("datasethps", "other_model_grabs", "other_model_gram", "other_model_kwargs")

#: Hyperparameters whose flags take several values.
_LISTS = ("n_samples", "loss_checkpoints", "percent_thresholds", "devices")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the settings of a script from its command line, under the names MLPscape gives them.

    There is a flag for every hyperparameter (``--LR 0.1``), and for ``W_source``,
    ``concat_outside``, ``DATASET``, ``TARGET_FUNCTION_TYPE``, ``EXPT_NAME``, ``datasethps_path``
    and ``target_monomials_path``. ``N_SAMPLES``, ``LOSS_CHECKPOINTS``, ``PERCENT_THRESHOLDS``,
    ``BETAS`` and ``DEVICES`` take several values; dictionaries and ``TARGET_MONOMIALS`` are given
    as JSON.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        A namespace whose values the script may change. Hyperparameters that MLPscape does not have
        (``PACK_SIZE``) are in it only where their flag is given.

    Raises:
        SystemExit: with code 2 and a message on stderr, for an unknown flag or a bad value.

    Example:
        >>> args = parse_args(["--ONLINE", "False", "--MAX_ITER", "1e4"])
        >>> args.ONLINE, args.MAX_ITER, args.N_SAMPLES
        (False, 10000, [1024])
    """
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = next((text for text in unknown if text.startswith("-")), unknown[0])
        close = did_you_mean(flag.lstrip("-").partition("=")[0], vars(args))
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{close}")
    if args.DEVICES == ["all"]:
        args.DEVICES = "all"
    for name, second in _SECOND_NAMES.items():
        setattr(args, second, getattr(args, name))
    return args


def base_args() -> argparse.Namespace:
    """Return the defaults of :func:`parse_args`, for notebooks, which have no command line.

    Example:
        >>> base_args().GAMMA
        1.0
    """
    return parse_args([])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--FLAG VALUE ...] (--help lists the flags)",
        description="Settings of the study. What the script itself sets overrides them.",
        allow_abbrev=False,
    )
    for field, info in hp.Hyperparameters.model_fields.items():
        name = field if field in _LOWER else field.upper()
        default = _DEFAULTS.get(field, info.default) if field in _ALWAYS else argparse.SUPPRESS
        names = filter(None, (name, _SECOND_NAMES.get(name)))
        parser.add_argument(
            *(f"--{each}" for each in names),
            dest=name,
            default=copy.deepcopy(default),
            help=str(info.description).replace("%", "%%"),
            **_value_options(field),
        )
    _add_further_flags(parser)
    return parser


def _add_further_flags(parser: argparse.ArgumentParser) -> None:
    texts = {
        "EXPT_NAME": (DEFAULT_EXPT_NAME, "name of the run; by default that of the script"),
        "DATASET": ("synthetic", "for the script: which data set"),
        "TARGET_FUNCTION_TYPE": ("monomial", "for the script: which kind of target"),
        "datasethps_path": (None, "for the script: a JSON file of datasethps"),
        "target_monomials_path": (None, "for the script: a JSON file of monomials"),
    }
    for name, (default, meaning) in texts.items():
        parser.add_argument(f"--{name}", default=default, help=meaning)
    parser.add_argument(
        "--W_source", choices=("in", "out"), default="in", help="the layer that named grabs measure"
    )
    parser.add_argument(
        "--concat_outside",
        type=_boolean,
        default=True,
        metavar="BOOL",
        help="whether its Gram matrix is W^T W, or else W W^T",
    )


def _value_options(field: str) -> dict[str, Any]:
    """Return the options with which argparse reads the values of a hyperparameter."""
    default = hp.Hyperparameters.model_fields[field].default
    if field in _LISTS:
        return {"nargs": "+", "type": _reader(field), "metavar": "VALUE"}
    if field == "betas":
        return {"nargs": 2, "type": float, "metavar": "VALUE"}
    if field == "target_monomials":
        return {"type": _json, "metavar": "JSON"}
    if isinstance(default, dict):
        return {"type": _reader(field, _json), "metavar": "JSON"}
    if isinstance(default, bool):
        return {"type": _boolean, "metavar": "BOOL"}
    if field in ("loss", "optimizer"):  # also names of torch, which are looked up later
        return {"type": str, "metavar": "NAME"}
    return {"type": _reader(field), "metavar": "VALUE"}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _reader(field: str, parse: Callable[[str], Any] = _literal) -> Callable[[str], Any]:
    """Return the function from a text to a value of a hyperparameter, or to one entry of a list."""

    def read(text: str) -> Any:
        try:
            value = hp.validate_one(field, parse(text))
        except SpecError as error:
            message = str(error).removeprefix(f"{field.upper()}: ")
            raise argparse.ArgumentTypeError(message) from None
        return value[0] if isinstance(value, tuple) else value

    return read


def _boolean(text: str) -> bool:
    value = parse_bool(text)
    if value is None:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; should be True or False (or yes, no, t, f, y, n, 1, 0)"
        )
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, which is not JSON ({error}); should be of the form "
            """'{"d": 200, "alpha": 2.0}' or '[{"0": 1}, {"0": 1, "1": 1}]'"""
        ) from None
