"""The command line of a script: a flag for every hyperparameter, and MLPscape's further ones."""

from __future__ import annotations

import argparse
import ast
import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec import hyperparameters as hp

__all__ = ["DEFAULT_EXPT_NAME", "base_args", "parse_args"]

DEFAULT_EXPT_NAME = "mlp-learning-curves"

#: What scripts find without having set it, by the name under which they read it. Everything else
#: in the table of hyperparameters is there if its flag is given.
_DEFAULTS: dict[str, Any] = {
    "ONLINE": True,
    "N_TRAIN": 4000,
    "N_TEST": 10_000,
    "ONLYTHRESHOLDS": True,
    "N_SAMPLES": [1024],
    "NUM_TRIALS": 1,
    "MAX_ITER": 100_000,
    "LR": 1e-2,
    "DEPTH": 2,
    "WIDTH": 8192,
    "GAMMA": 1.0,
    "DEVICES": "all",
    "SEED": 42,
    "LOSS_CHECKPOINTS": [0.15, 0.1],
    "EMA_SMOOTHER": 0.9,
    "DETERMINISTIC": True,
    "VERBOSE": False,
    "TARGET_MONOMIALS": None,
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
    "other_model_grabs": {},
    "other_model_gram": {},
    "other_model_kwargs": {},
}

#: Other names under which scripts read the same.
_SPELLINGS = {"WIDTH": "width", "DEPTH": "depth", "DETERMINISTIC": "DETERMINSITIC"}

#: Names that the originals spell in lower case.
_LOWER = ("datasethps", "other_model_grabs", "other_model_gram", "other_model_kwargs")

_WORDS = {"yes": True, "t": True, "y": True, "no": False, "f": False, "n": False}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the settings of a script from its command line, under the names MLPscape gives them.

    There is a flag for every hyperparameter (``--LR 0.1``, in either case), and for
    ``W_source``, ``concat_outside``, ``DATASET``, ``TARGET_FUNCTION_TYPE``, ``EXPT_NAME``,
    ``datasethps_path`` and ``target_monomials_path``. ``N_SAMPLES``, ``LOSS_CHECKPOINTS``,
    ``PERCENT_THRESHOLDS``, ``BETAS`` and ``DEVICES`` take several values; dictionaries and
    ``TARGET_MONOMIALS`` are given as JSON.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        a namespace whose values a script may change at will. Hyperparameters that MLPscape does
        not know (``PACK_SIZE``) are in it only where their flag is given.

    Raises:
        SystemExit: with code 2, having said why, where a flag or a value is none.

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
    return args


def base_args() -> argparse.Namespace:
    """Return the defaults of :func:`parse_args`, for notebooks, which have no command line.

    Example:
        >>> base_args().GAMMA
        1.0
    """
    return parse_args([])


class _Set(argparse.Action):
    """Sets a value under every spelling in which a script may read it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for name in filter(None, (self.dest, _SPELLINGS.get(self.dest))):
            setattr(namespace, name, values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--FLAG VALUE ...] (--help lists the flags)",
        description="Settings of the study; what the script sets itself, it sets after these.",
        allow_abbrev=False,
    )
    for field, info in hp.Hyperparameters.model_fields.items():
        name = field if field in _LOWER else field.upper()
        default = copy.deepcopy(_DEFAULTS.get(name, argparse.SUPPRESS))
        meaning = str(info.description).replace("%", "%%")
        options: dict[str, Any] = {"action": _Set, "dest": name, **_reading(field)}
        parser.add_argument(f"--{name}", default=default, help=meaning, **options)
        hidden = {name.lower(), name.upper(), _SPELLINGS.get(name, name)} - {name}
        options |= {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        parser.add_argument(*(f"--{spelling}" for spelling in sorted(hidden)), **options)
    parser.set_defaults(**{spelling: _DEFAULTS[name] for name, spelling in _SPELLINGS.items()})
    _add_further_flags(parser)
    return parser


def _add_further_flags(parser: argparse.ArgumentParser) -> None:
    texts = {
        "EXPT_NAME": (DEFAULT_EXPT_NAME, "what the run is called; by default like the script"),
        "DATASET": ("synthetic", "for the script: which data set"),
        "TARGET_FUNCTION_TYPE": ("monomial", "for the script: which kind of target"),
        "datasethps_path": (None, "for the script: a JSON file of datasethps"),
        "target_monomials_path": (None, "for the script: a JSON file of monomials"),
    }
    for name, (default, meaning) in texts.items():
        parser.add_argument(f"--{name}", default=default, help=meaning)
    parser.add_argument(
        "--W_source", choices=("in", "out"), default="in", help="the layer that named grabs read"
    )
    parser.add_argument(
        "--concat_outside",
        type=_boolean,
        default=True,
        metavar="BOOL",
        help="their Gram matrix is W^T W, or else W W^T",
    )


def _reading(field: str) -> dict[str, Any]:
    """Return how argparse is to read a hyperparameter."""
    if field in ("loss_checkpoints", "percent_thresholds"):
        return {"nargs": "+", "type": _each_of(field), "metavar": "LOSS"}
    if field == "n_samples":
        return {"nargs": "+", "type": _value_of(field), "metavar": "N"}
    if field == "betas":
        return {"nargs": 2, "type": float, "metavar": ("BETA1", "BETA2")}
    if field == "devices":
        return {"nargs": "+", "type": _device, "metavar": "GPU"}
    if field == "target_monomials":
        return {"type": _json_list, "metavar": "JSON"}
    default = hp.Hyperparameters.model_fields[field].default
    if isinstance(default, dict):
        return {"type": _json_object, "metavar": "JSON"}
    if isinstance(default, bool):
        return {"type": _boolean, "metavar": "BOOL"}
    if field in ("loss", "optimizer"):  # also by the names of torch, which are looked up later
        return {"type": str, "metavar": "NAME"}
    return {"type": _value_of(field), "metavar": "VALUE"}


def _value_of(field: str) -> Callable[[str], Any]:
    """Return the function from a text to a value of a hyperparameter."""

    def read(text: str) -> Any:
        try:
            return hp.validate_one(field, _literal(text))
        except SpecError as error:
            said = str(error).removeprefix(f"{field.upper()}: ")
            raise argparse.ArgumentTypeError(said) from None

    return read


def _each_of(field: str) -> Callable[[str], Any]:
    """Return the function from a text to one entry of a hyperparameter that is a list."""
    read = _value_of(field)
    return lambda text: read(text)[0]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _boolean(text: str) -> bool:
    word = text.lower()
    if word in _WORDS:
        return _WORDS[word]
    if word in ("true", "false", "1", "0"):
        return word in ("true", "1")
    raise argparse.ArgumentTypeError(
        f"got {text!r}; should be True or False (or one of {', '.join(_WORDS)}, 1, 0)"
    )


def _device(text: str) -> int | str:
    if text == "all" or text.isdecimal():
        return text if text == "all" else int(text)
    raise argparse.ArgumentTypeError(
        f"got {text!r}; should be indices of GPUs such as --DEVICES 0 1, or --DEVICES all"
    )


def _json_object(text: str) -> Any:
    return _json(text, dict, '\'{"d": 200, "alpha": 2.0}\'')


def _json_list(text: str) -> Any:
    return _json(text, list, '\'[{"0": 1}, {"0": 1, "1": 1}]\'')


def _json(text: str, kind: type, example: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, which is no JSON ({error}); should be of the form {example}"
        ) from None
    if not isinstance(value, kind):
        raise argparse.ArgumentTypeError(f"got {text!r}; should be of the form {example}")
    return value
