"""What a spec sets in its process is recorded for the workers, or refused; none of it stays."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit import SpecError, Sweep
from mlpsubmit.spec.load import (
    load_spec,
    pickle_sweep,
    unpickle_surroundings,
    unpickle_sweep,
)
from mlpsubmit.spec.process import ProcessSettings, Surroundings
from mlpsubmit.training.global_state import global_state_kept

HEAD = """
import os, random, sys, warnings
import numpy as np
import torch
from mlpsubmit import Sweep
def batches(bsz, gen): return lambda step: None
sweep = Sweep("set", batchfn=batches)
"""


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Sweep]:
    """Read a spec with some lines after its sweep."""

    def read(lines: str = "", name: str = "spec.py", head: str = HEAD) -> Sweep:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(head + lines + "\n")
        return load_spec(path)

    return read


def key(sweep: Sweep) -> str:
    return sweep.refreshed().config(0).key


def everything() -> dict[str, Any]:
    """Return all of this process that a spec may set."""
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": sys.path[:],
        "argv": sys.argv[:],
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "seterr": np.geterr(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
        "filters": warnings.filters[:],
        "denormals": float(np.finfo(np.float64).tiny) / 2 > 0,
    }


@contextlib.contextmanager
def nothing_stays() -> Iterator[None]:
    before = everything()
    yield
    assert everything() == before


SETTINGS = {
    "a variable": "os.environ['STUDY'] = 'x'",
    "a folder": "os.chdir('/')",
    "a path": "sys.path.append('/somewhere')",
    "arguments": "sys.argv.append('x')",
    "a dtype": "torch.set_default_dtype(torch.float64)",
    "a flag": "torch.backends.cudnn.enabled = False; torch.backends.cudnn.deterministic = True",
    "gradients": "torch.set_grad_enabled(False)",
    "errors": "np.seterr(all='raise')",
    "seeds": "torch.manual_seed(3); np.random.seed(3); random.seed(3)",
    "draws": "torch.rand(2); np.random.rand(); random.random()",
    "filters": "warnings.simplefilter('ignore')",
    "denormals": "torch.set_flush_denormal(True)",
    "determinism": "torch.use_deterministic_algorithms(True)",
    "a removed variable": "os.environ.pop('HOME', None)",
}


@pytest.mark.parametrize("what", SETTINGS)
def test_nothing_stays_after_a_spec_was_read(read: Any, what: str) -> None:
    with nothing_stays():
        read(SETTINGS[what])
    with nothing_stays(), pytest.raises(SpecError, match="ZeroDivision"):
        read(SETTINGS[what] + "\n1 / 0")


@pytest.mark.parametrize("what", SETTINGS)
def test_what_may_change_a_result_is_part_of_the_keys(read: Any, what: str) -> None:
    plain, changed = key(read()), key(read(SETTINGS[what]))
    neutral = ("a folder", "a path", "arguments", "filters", "determinism")
    assert (changed != plain) == (what not in neutral)
    assert key(read(SETTINGS[what])) == changed


def test_another_seed_is_another_key(read: Any) -> None:
    assert key(read("np.random.seed(1)")) != key(read("np.random.seed(2)"))


def test_a_worker_has_all_of_it(read: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    sweep = read(
        f"os.environ['STUDY'] = 'x'; os.chdir({str(tmp_path / 'elsewhere')!r})\n"
        "sys.path.append('../lib')\n"
        "torch.set_default_dtype(torch.float64); np.seterr(divide='raise')\n"
        "warnings.filterwarnings('error', 'of mine', RuntimeWarning)\n"
        "torch.manual_seed(3); np.random.seed(3); random.seed(3)\n"
    )
    torch.manual_seed(3)
    drawn = torch.rand((), dtype=torch.float64).item(), np.random.RandomState(3).rand()
    process = unpickle_sweep(pickle_sweep(sweep)).process
    assert process is not None
    with process.applied():
        assert os.environ["STUDY"] == "x"
        assert Path.cwd() == tmp_path / "elsewhere"
        assert sys.path[-1] == str(tmp_path / "lib")
        assert str(tmp_path) in sys.path
        assert sys.argv == [str(tmp_path / "spec.py")]
        assert torch.get_default_dtype() == torch.float64
        assert np.geterr()["divide"] == "raise"
        with pytest.raises(RuntimeWarning):
            warnings.warn("of mine", RuntimeWarning, stacklevel=1)
        process.seed_generators(0)
        assert (torch.rand(()).item(), np.random.rand()) == drawn
        assert random.random() == random.Random(3).random()


def test_unseeded_draws_of_a_spec_are_the_same_in_every_launch(read: Any) -> None:
    """Otherwise an unchanged spec would never continue its run."""
    draws = "random.random(), np.random.rand(), torch.rand(())"
    first = read(draws)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    second = read(draws)
    assert key(first) == key(second) != key(read())  # the states are part of the key


def test_generators_that_the_spec_leaves_alone_are_seeded(read: Any) -> None:
    process = read().process
    draws = []
    for _ in range(2):
        process.seed_generators(5)
        draws.append((torch.rand(()).item(), np.random.rand(), random.random()))
    assert draws[0] == draws[1]
    assert draws[0][1] == np.random.RandomState(5).rand()


REFUSED = {
    "os.environ['OMP_NUM_THREADS'] = '3'": "os.environ['OMP_NUM_THREADS']: set by the spec; leave "
    "it out: the threads of a task come from the plan",
    "os.environ['MKL_NUM_THREADS'] = '3'": "the threads of a task come from the plan",
    "os.environ['NUMEXPR_MAX_THREADS'] = '3'": "the threads of a task come from the plan",
    "torch.set_num_threads(torch.get_num_threads() + 1)": "torch.set_num_threads: the spec sets "
    "the threads to 2; leave it out: the threads of a task come from the plan",
    "os.environ['CUDA_VISIBLE_DEVICES'] = '1'": "choose GPUs by DEVICES=[0, 1]",
    "os.environ['SBATCH_ACCOUNT'] = 'x'": "use the keys of a template, or options",
    "os.environ['MLPSUBMIT_RUNS'] = '/x'": "give it on the command line, as in --runs-dir",
    "os.environ['ATEN_CPU_CAPABILITY'] = 'default'": "it is read when torch and numpy are loaded",
    "os.environ['NVIDIA_TF32_OVERRIDE'] = '0'": "set PRECISION in the Sweep",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_belongs_elsewhere_is_refused_where_the_spec_is_read(read: Any, line: str) -> None:
    with nothing_stays(), pytest.raises(SpecError) as caught:
        read(line)
    assert REFUSED[line] in str(caught.value)
    assert "spec.py: " in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "seeded"),
    [(None, []), ("cuda", ["torch.cuda"]), ("mps", ["torch", "torch.cuda"])],
)
def test_only_devices_that_the_machine_has_are_seeded(
    kind: str | None, seeded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other kinds would keep every call, for 10,000 packs, in case that they appear."""
    calls, accelerator = list[str](), pytest.importorskip("torch.accelerator")
    device = None if kind is None else torch.device(kind)
    monkeypatch.setattr(accelerator, "is_available", lambda: device is not None)
    monkeypatch.setattr(accelerator, "current_accelerator", lambda: device)
    seed, expected = torch.manual_seed, torch.Generator().manual_seed(5).get_state()
    monkeypatch.setattr(torch, "manual_seed", lambda one: (calls.append("torch"), seed(one)))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: calls.append("torch.cuda"))
    kept = len(torch.cuda._queued_calls)
    with global_state_kept():
        ProcessSettings.of_this_process().seed_generators(5)
        assert torch.equal(torch.get_rng_state(), expected)
        assert torch.initial_seed() == 5
    assert calls == seeded
    if kind != "mps":
        assert len(torch.cuda._queued_calls) == kept


def test_all_that_is_refused_stands_in_one_message(read: Any) -> None:
    with pytest.raises(SpecError) as caught:
        read("os.environ.update(OMP_NUM_THREADS='3', SLURM_X='1'); torch.set_num_threads(7)")
    assert len(caught.value.errors) == 3


OWNED = {
    "torch.set_float32_matmul_precision('high')": "torch.set_float32_matmul_precision: set to "
    "'high' by the spec, but training sets it itself; leave it out, and use PRECISION='tf32' "
    "instead",
    "torch.set_float32_matmul_precision('medium')": "use PRECISION instead",
    "torch.backends.fp32_precision = 'tf32'": "use PRECISION instead",
    "torch.backends.cudnn.allow_tf32 = False": None,  # as in training
    "torch.use_deterministic_algorithms(True)": None,
    "torch.use_deterministic_algorithms(True, warn_only=True)": "use DETERMINISTIC=True instead",
    "torch.backends.cudnn.benchmark = True": "use DETERMINISTIC instead",
    "torch.set_default_device('meta')": "use the argument device of functions instead",
}


@pytest.mark.parametrize("line", OWNED)
def test_what_a_hyperparameter_sets_is_refused_unless_it_agrees(read: Any, line: str) -> None:
    with nothing_stays():
        sweep = read(line)
    if OWNED[line] is None:
        sweep.refreshed()
        return
    with pytest.raises(SpecError) as caught:
        sweep.refreshed()
    assert len(caught.value.errors) == 1
    assert str(OWNED[line]) in str(caught.value)


def test_a_hyperparameter_that_agrees_is_enough(read: Any) -> None:
    line = "torch.set_float32_matmul_precision('high')\n"
    read(line, head=HEAD.replace("batchfn=", "PRECISION='tf32', batchfn=")).refreshed()
    line = "torch.use_deterministic_algorithms(True)"
    sweep = read(line, head=HEAD.replace("batchfn=", "DETERMINISTIC=False, batchfn="))
    with pytest.raises(SpecError, match="use DETERMINISTIC=True instead"):
        sweep.refreshed()


ARGUMENTS = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=12)
from mlpsubmit import Sweep
sweep = Sweep(batchfn=lambda bsz: None, WIDTH=parser.parse_args().width)
"""


def test_a_spec_that_parses_arguments_gets_its_defaults(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mlpsubmit", "launch", "spec.py", "--width", "7"])
    assert read(head=ARGUMENTS).base.width == 12
    assert sys.argv[1] == "launch"


def test_float64_by_default_means_fp64(read: Any) -> None:
    line = "torch.set_default_dtype(torch.float64)"
    assert read(line).refreshed().base.precision == "fp64"
    assert read().refreshed().base.precision == "fp32"
    given = read(line, head=HEAD.replace("batchfn=", "PRECISION='fp32', batchfn="))
    assert given.refreshed().base.precision == "fp32"
    assert read(line).overridden({"WIDTH": 4}).base.precision == "fp64"


def test_modules_of_one_name_beside_two_specs_are_two(read: Any, tmp_path: Path) -> None:
    sweeps = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "helper_of_study.py").write_text(f"VALUE = {number}\n")
        lines = (
            "import helper_of_study\nsweep = Sweep(batchfn=batches, WIDTH=helper_of_study.VALUE)"
        )
        sweeps.append(read(lines, f"{number}/spec.py"))
    assert [sweep.base.width for sweep in sweeps] == [1, 2]


SIBLING = """
import sys
from pathlib import Path
sys.path.append("../lib")
import targets_of_study
from mlpsubmit import Sweep
def batches(bsz, gen):
    def batch_fn(step):
        import lazy_of_study
        return targets_of_study.target(step) + lazy_of_study.OFFSET
    return batch_fn
sweep = Sweep("sibling", batchfn=batches)
"""

CALL = """
import sys
from pathlib import Path
from mlpsubmit.spec.load import unpickle_surroundings, unpickle_sweep
content = Path(sys.argv[1]).read_bytes()
surroundings = unpickle_surroundings(content)
assert "torch" not in sys.modules
with surroundings.applied():
    print(unpickle_sweep(content).batchfn(1, 2)(3))
"""


LAZY = """
from mlpsubmit import Sweep
def batches(bsz, gen):
    from first_of_study import offset
    return lambda step: offset
sweep = Sweep("lazy", batchfn=batches)
"""


def test_modules_that_functions_import_are_found_where_the_spec_finds_them(
    read: Any, tmp_path: Path
) -> None:
    """Also where Python itself does not, as under the console script."""
    (tmp_path / "first_of_study.py").write_text("from second_of_study import offset\n")
    keys = []
    for offset in (1, 1, 2):
        (tmp_path / "second_of_study.py").write_text(f"offset = {offset}\n")
        keys.append(key(read(head=LAZY)))
    assert keys[0] == keys[1] != keys[2]


REPLACED = """
import torch
from mlpsubmit import Sweep
def batches(bsz, gen): return lambda step: torch.nn.functional.relu(gen).exp()
sweep = Sweep("replaced", batchfn=batches)
"""


@pytest.mark.parametrize(
    ("owner", "name"), [("torch.nn.functional", "relu"), ("torch.Tensor", "exp")]
)
def test_what_the_spec_replaces_in_a_library_is_refused(
    read: Any, monkeypatch: pytest.MonkeyPatch, owner: str, name: str
) -> None:
    """Workers have the library as it is installed."""
    key(read(head=REPLACED))
    place = functools.reduce(getattr, owner.split(".")[1:], torch)
    monkeypatch.setattr(place, name, getattr(place, name))  # restored afterwards
    sweep = read(f"{owner}.{name} = lambda x: 2 * x", head=REPLACED)
    place = owner.removeprefix("torch.") if owner == "torch.Tensor" else owner
    with pytest.raises(
        SpecError, match=f"batchfn: .* uses {place}.{name}, which is not the library"
    ):
        key(sweep)


def test_modules_of_a_sibling_folder_travel(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that functions use by value, so that later edits do not reach queued tasks."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "targets_of_study.py").write_text("def target(x): return 2 * x\n")
    (tmp_path / "lib" / "lazy_of_study.py").write_text("OFFSET = 100\n")
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path / "experiments")
    content = pickle_sweep(read(name="experiments/spec.py", head=SIBLING))
    (tmp_path / "lib" / "targets_of_study.py").write_text("1 / 0")
    (tmp_path / "sweep.pkl").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", CALL, tmp_path / "sweep.pkl"],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.stdout == "106\n", done.stderr


def test_a_file_of_a_standard_name_beside_the_spec_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("1 / 0")  # of Python's, not loaded yet
    sys.modules.pop("colorsys", None)
    with Surroundings(str(tmp_path), ((str(tmp_path),), ())).applied():
        import colorsys
    assert Path(colorsys.__file__).parent == Path(os.__file__).parent


def test_python_and_its_packages_are_no_folders_of_the_user() -> None:
    before, after = Surroundings.of_this_process(os.environ).path
    assert not [path for path in (*before, *after) if "site-packages" in path]


def test_a_script_that_launches_is_recorded_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY_OF_A_SCRIPT", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # of this process alone
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "x")
    torch.set_default_dtype(torch.float64)
    try:
        process = ProcessSettings.of_this_process()
        sweep = Sweep("script", batchfn=lambda bsz: None)
        assert sweep.refreshed().base.precision == "fp64"
    finally:
        torch.set_default_dtype(torch.float32)
    environment = process.surroundings.environment
    assert environment["STUDY_OF_A_SCRIPT"] == "3"
    assert not environment.keys() & {"OMP_NUM_THREADS", "PYTEST_CURRENT_TEST"}
    assert sweep.refreshed().base.precision == "fp32"
    changed = sweep.refreshed().config(0).key
    monkeypatch.setenv("STUDY_OF_A_SCRIPT", "4")
    assert sweep.refreshed().config(0).key != changed


def test_surroundings_are_loaded_without_the_sweep(read: Any) -> None:
    content = pickle_sweep(read("os.environ['STUDY'] = 'x'"))
    assert unpickle_surroundings(content).environment == {"STUDY": "x"}
    assert len(pickle.loads(content)) == 3
