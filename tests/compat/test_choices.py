"""Models, optimizers, losses and initialisations that a script chooses, as in modelscape."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import SpecError
from mlpsubmit.compat import MLP
from mlpsubmit.compat.functions import Model, PostInit, SqueezedLoss, as_built
from mlpsubmit.compat.study import read_study
from mlpsubmit.training.seeds import weights_rng

CLOSE = {"rel": 2e-4, "abs": 1e-6}


def any_bfn(bsz, gen, X=None, y=None):
    def batch_fn(step):
        inputs = torch.randn(bsz, 4, generator=gen)
        return inputs, inputs[:, 0]

    return batch_fn


def base(config, iterators=(), names=()):
    found = read_study([[8], [0], *iterators], ["n", "trial", *names], config, BFN, "study")
    return found.sweep.base


BFN = {"base_bfn": any_bfn}


class Muon(torch.optim.Optimizer):
    """SGD with momentum, and other defaults than the library's."""

    def __init__(self, params, lr=1e-2, momentum=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(p.grad + group["weight_decay"] * p)
                p.sub_(group["lr"] * buffer)


class Two(nn.Module):
    """Two layers without biases, times a constant."""

    def __init__(self, d_in, width=3, scale=1.0):
        super().__init__()
        self.first, self.last = nn.Linear(d_in, width, bias=False), nn.Linear(width, 1, bias=False)
        self.scale = scale

    def forward(self, x):
        return self.scale * self.last(torch.tanh(self.first(x)))


# ---- which of them train in packs ----------------------------------------------------------------


def test_optimizers_of_our_own_are_chosen_by_their_names():
    found = base({"OPTIMIZER": "muon", "MOMENTUM": 0.8, "WEIGHT_DECAY": 0.1})
    assert (found.optimizer, found.momentum, found.weight_decay) == ("muon", 0.8, 0.1)
    assert base({"OPTIMIZER": "rmsprop"}).optimizer == "rmsprop"
    assert base({"OPTIMIZER": "RMSprop"}).optimizer is torch.optim.RMSprop
    axis = read_study([[8], [0], ["sgd", "lion"]], ["n", "trial", "OPTIMIZER"], {}, BFN, "study")
    assert [config.hyperparameters.optimizer for config in axis.sweep] == ["sgd", "lion"]
    iterated = [[8], [0], ["muon", torch.optim.Adagrad]]
    fixed = {"MOMENTUM": 0.8, "LR_DECAY": 0.1}
    mixed = read_study(iterated, ["n", "trial", "OPTIMIZER_CLASS"], fixed, BFN, "study")
    assert mixed.sweep.base.momentum == 0.8
    with pytest.raises(SpecError, match=r"MOMENTUM: got 0\.9, which OPTIMIZER='lion' does not use"):
        base({"OPTIMIZER": "lion", "MOMENTUM": 0.9})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "sgd"),
        ({"optimizer": "SGD"}, "sgd"),
        ({"optimizer": "adam"}, "adam"),
        ({"OPTIMIZER_CLASS": torch.optim.AdamW}, "adamw"),
        ({"optimizer_fn": torch.optim.Adam, "optimizer": "SGD"}, "adam"),
        ({"optimizer": None, "optimizer_class": None}, "sgd"),
        ({"OPTIMIZER_CLASS": torch.optim.RMSprop}, torch.optim.RMSprop),
        ({"optimizer": "Adagrad"}, torch.optim.Adagrad),
        ({"OPTIMIZER_CLASS": Muon}, Muon),
    ],
)
def test_optimizers(config, expected):
    assert base(config).optimizer == expected


def test_arguments_of_optimizers_come_by_name():
    sgd = base({"optimizer": "SGD", "momentum": 0.9, "nesterov": True, "betas": (0.5, 0.5)})
    assert (sgd.momentum, sgd.nesterov, sgd.betas) == (0.9, True, None)
    # An optimizer gets only the arguments that it takes.
    adam = base({"OPTIMIZER_CLASS": torch.optim.Adam, "momentum": 0.9, "weight_decay": 0.1})
    assert (adam.optimizer, adam.momentum, adam.weight_decay) == ("adam", None, 0.1)
    assert base({"optimizer": "AdamW"}).of_optimizer("weight_decay") == 0.01
    assert base({"optimizer": "AdamW", "weight_decay": 0.0}).weight_decay == 0.0


def test_arguments_that_no_hyperparameter_is_travel_with_the_class():
    bound = base({"optimizer": "SGD", "momentum": 0.9, "dampening": 0.5}).optimizer
    assert isinstance(bound, functools.partial)
    assert bound.func is torch.optim.SGD
    assert bound.keywords == {"momentum": 0.9, "dampening": 0.5}
    # A value equal to the hyperparameter's default overrides the default of the class.
    assert base({"OPTIMIZER_CLASS": Muon, "momentum": 0.0}).optimizer.keywords == {"momentum": 0.0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "mse"),
        ({"LOSS": "mse"}, "mse"),
        ({"loss": "MSELoss"}, "mse"),
        ({"LOSS_CLASS": nn.MSELoss}, "mse"),
        ({"LOSS_INSTANCE": nn.MSELoss(), "loss": "L1Loss"}, "mse"),
        ({"loss_class": nn.CrossEntropyLoss, "d_out": 3}, "cross_entropy"),
        ({"LOSS": "cross_entropy", "d_out": 3}, "cross_entropy"),
        ({"LOSS_FN": lambda: nn.CrossEntropyLoss(), "d_out": 3}, "cross_entropy"),
    ],
)
def test_losses_that_train_in_packs(config, expected):
    assert base(config).loss == expected


def test_other_losses_keep_their_arguments():
    huber = base({"loss": "HuberLoss", "delta": 0.5}).loss
    assert isinstance(huber, SqueezedLoss)
    assert huber.func.delta == 0.5
    output, y = torch.zeros(3, 1), torch.tensor([0.1, 2.0, -1.0])
    assert huber(output, y) == nn.functional.huber_loss(torch.zeros(3), y, delta=0.5)
    for loss in (nn.MSELoss(reduction="sum"), nn.CrossEntropyLoss(label_smoothing=0.1)):
        assert base({"LOSS_INSTANCE": loss, "d_out": 3}).loss.func is not None
    function = base({"LOSS_INSTANCE": nn.functional.l1_loss}).loss
    assert function(output, y) == nn.functional.l1_loss(torch.zeros(3), y)


# ---- models ------------------------------------------------------------------------------------


def test_without_a_model_class_it_is_our_mlp_in_mup():
    settings = base({"width": 8})
    assert (settings.model, settings.parametrization) == ("mlp", "mup")
    without_biases = base({"width": 8, "bias": False})
    assert without_biases.parametrization == "mup"
    made = without_biases.model(d_in=4, d_out=2, width=8, depth=2, input_shape=(4,))
    assert isinstance(made, MLP)
    assert made.input_layer.bias is None
    assert made.output_layer.out_features == 2


def test_a_model_class_gets_what_it_declares():
    model = base({"MODEL_CLASS": Two, "scale": 2.0, "width": 5}).model
    assert isinstance(model, Model)
    assert set(inspect.signature(model).parameters) == {"d_in", "width"}
    made = model(d_in=4, width=5)
    assert (made.first.out_features, made.scale) == (5, 2.0)
    # A setting that the script leaves out keeps the default of the class.
    assert set(inspect.signature(base({"MODEL_CLASS": Two}).model).parameters) == {"d_in"}
    # The script may set the input dimension.
    assert base({"MODEL_CLASS": Two, "DIM": 7, "d_in": 5}).model().first.in_features == 7


def test_a_class_with_its_own_number_of_outputs_keeps_it():
    class Ten(nn.Module):
        def __init__(self, d_in, d_out=10):
            super().__init__()
            self.first, self.last = nn.Linear(d_in, 3), nn.Linear(3, d_out)

        def forward(self, x):
            return self.last(self.first(x))

    settings = base({"MODEL_CLASS": Ten, "loss": "CrossEntropyLoss"})
    assert settings.model(d_in=2).last.out_features == 10
    assert set(inspect.signature(settings.model).parameters) == {"d_in"}
    given = base({"MODEL_CLASS": Ten, "loss": "CrossEntropyLoss", "d_out": 4})
    assert given.model(d_in=2, d_out=given.d_out).last.out_features == 4


def test_models_as_an_iterator(run, config, traces):
    class Wide(nn.Module):
        def __init__(self, d_in, width=8):
            super().__init__()
            self.first, self.last = nn.Linear(d_in, 2 * width), nn.Linear(2 * width, 1)

        def forward(self, x):
            return self.last(self.first(x))

    result = run(
        [[8], [0], [Two, Wide], ["SGD", "Adam"]],
        ["ntrain", "trial", "MODEL_CLASS", "optimizer"],
        config(width=6, otherreturns={"units": lambda model, **kw: model.first.out_features}),
        BFN,
    )
    assert [job[2:] for job in result["jobs"]] == [
        *(("Two", "sgd"), ("Two", "adam"), ("Wide", "sgd"), ("Wide", "adam"))
    ]
    units = traces(result)["units"][:, :, :, :].ravel()
    assert units.tolist() == [6, 6, 12, 12]


# ---- numbers -----------------------------------------------------------------------------------


def initial(n, trial, **arguments):
    """Return the model of a config as it is built: PyTorch's initialisation, same stream."""
    with weights_rng(3, trial):
        return Two(4, **arguments)


@pytest.fixture
def plainly(gaussian, mlpscape):
    """Train a network as it is built by MLPscape's loop, in plain torch."""

    def train(n, trial, **how):
        model = initial(n, trial, width=8)
        settings = {"lr": 0.02, "max_iter": 30, "thresholds": [0.6, 1e-9]}
        return mlpscape(gaussian, n, trial, model=model, **settings, **how)

    return train


def compare(result, traces, mlpscape, gaussian, **how):
    found = traces(result)
    for job in result["jobs"]:
        n, trial, *rest = job
        more = {key: value(*rest) if callable(value) else value for key, value in how.items()}
        plain = mlpscape(gaussian, n, trial, max_iter=30, thresholds=[0.6, 1e-9], **more)
        assert found["losses"][job] == pytest.approx(plain.test[-1], **CLOSE)
        assert found["timekeys"][job].tolist() == plain.timekeys.tolist()


def test_with_a_model_class_gamma_rescales_the_learning_rate_alone(
    run, config, gaussian, traces, mlpscape
):
    """As in modelscape, where nothing but a POST_INIT_FN divides the outputs."""
    result = run(
        [[8], [0], [0.5, 2.0]],
        ["ntrain", "trial", "GAMMA"],
        config(MODEL_CLASS=Two, width=6),
        {"base_bfn": gaussian},
    )
    assert base({"MODEL_CLASS": Two}).parametrization is as_built
    for job in result["jobs"]:
        n, trial, gamma = job
        plain = mlpscape(
            gaussian,
            n,
            trial,
            lr=0.1,
            gamma=gamma,
            max_iter=30,
            thresholds=[0.6, 1e-9],
            model=initial(n, trial, width=6),
        )
        assert traces(result)["losses"][job] == pytest.approx(plain.test[-1], **CLOSE)


@pytest.mark.parametrize(
    ("changes", "optimizer"),
    [
        ({"optimizer": "SGD", "momentum": 0.5}, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.5)),
        ({"OPTIMIZER_CLASS": torch.optim.Adam}, torch.optim.Adam),
        ({"optimizer": "AdamW"}, torch.optim.AdamW),
        ({"optimizer": "RMSprop", "alpha": 0.9}, lambda p, lr: torch.optim.RMSprop(p, lr, 0.9)),
        ({"optimizer_class": Muon}, Muon),
        (
            {"OPTIMIZER_FN": lambda params, lr: Muon(params, lr, momentum=0.5)},
            lambda p, lr: Muon(p, lr, momentum=0.5),
        ),
    ],
)
def test_optimizers_against_torch(run, config, gaussian, traces, plainly, changes, optimizer):
    result = run(
        [[8], [0, 1]],
        ["ntrain", "trial"],
        config(MODEL_CLASS=Two, LR=0.02, **changes),
        {"base_bfn": gaussian},
    )
    for n, trial in result["jobs"]:
        plain = plainly(n, trial, optimizer=optimizer)
        assert traces(result)["losses"][n, trial] == pytest.approx(plain.test[-1], **CLOSE)


def test_an_iterator_over_an_argument_of_a_custom_optimizer(run, config, gaussian, traces, plainly):
    """0 is the default of MOMENTUM, but not that of the class."""
    result = run(
        [[8], [0], [0.0, 0.9]],
        ["ntrain", "trial", "momentum"],
        config(MODEL_CLASS=Two, LR=0.02, OPTIMIZER_CLASS=Muon),
        {"base_bfn": gaussian},
    )
    for n, trial, momentum in result["jobs"]:
        plain = plainly(n, trial, optimizer=functools.partial(Muon, momentum=momentum))
        assert traces(result)["losses"][n, trial, momentum] == pytest.approx(
            plain.test[-1], **CLOSE
        )


def squeezed(function):
    return lambda output, y: function(output.squeeze(), y.squeeze())


@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        ({"LOSS_CLASS": nn.L1Loss}, squeezed(nn.functional.l1_loss)),
        (
            {"loss": "HuberLoss", "delta": 0.1},
            squeezed(functools.partial(nn.functional.huber_loss, delta=0.1)),
        ),
        (
            {"LOSS_INSTANCE": nn.MSELoss(reduction="sum")},
            squeezed(functools.partial(nn.functional.mse_loss, reduction="sum")),
        ),
    ],
)
def test_losses_against_torch(run, config, gaussian, traces, plainly, changes, loss):
    result = run(
        [[8], [0, 1]],
        ["ntrain", "trial"],
        config(MODEL_CLASS=Two, LR=0.02, **changes),
        {"base_bfn": gaussian},
    )
    for n, trial in result["jobs"]:
        plain = plainly(n, trial, loss=loss)
        assert traces(result)["losses"][n, trial] == pytest.approx(plain.test[-1], **CLOSE)


def test_cross_entropy_of_smoothed_labels_with_weights_of_classes(run, config, traces, mlpscape):
    def bfn(bsz, gen, X=None, y=None):
        def batch_fn(step):
            inputs = torch.randn(bsz, 4, generator=gen)
            return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()

        return batch_fn

    class Three(nn.Module):
        def __init__(self, d_in):
            super().__init__()
            self.first, self.last = nn.Linear(d_in, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)))

    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1)
    for chosen in (loss, nn.CrossEntropyLoss()):
        result = run(
            [[8], [0]],
            ["ntrain", "trial"],
            config(MODEL_CLASS=Three, LOSS_INSTANCE=chosen),
            {"base_bfn": bfn},
        )
        with weights_rng(3, 0):
            model = Three(4)
        plain = mlpscape(
            bfn, 8, 0, lr=0.1, max_iter=30, thresholds=[0.6, 1e-9], model=model, loss=chosen
        )
        assert traces(result)["losses"][8, 0] == pytest.approx(plain.test[-1], **CLOSE)


# ---- POST_INIT_FN ------------------------------------------------------------------------------


def halve(model, opt, gamma, factor, **kwargs):
    """Divide the outputs by gamma in a closure, as mupify's rescale does; halve one lr."""
    with torch.no_grad():
        model.first.weight.mul_(factor)
    forward, scale = model.last.forward, 1 / gamma
    model.last.forward = lambda x: scale * forward(x)
    base_group = opt.param_groups.pop()
    for parameter in base_group["params"]:
        lr = base_group["lr"] * (0.5 if parameter is model.first.weight else 1.0)
        opt.param_groups.append({**base_group, "params": [parameter], "lr": lr})
    return model, opt


def test_post_init_fn(run, config, gaussian, traces, mlpscape):
    result = run(
        [[8], [0, 1], [0.5, 2.0], [1.0, 3.0]],
        ["ntrain", "trial", "GAMMA", "factor"],
        config(MODEL_CLASS=Two, POST_INIT_FN=halve),
        {"base_bfn": gaussian},
    )
    assert len(result["jobs"]) == 8
    for n, trial, gamma, factor in result["jobs"]:
        model = initial(n, trial, width=8)

        def initialised(parameters, lr, model=model, gamma=gamma, factor=factor):
            opt = torch.optim.SGD(parameters, lr)
            halve(model, opt, gamma, factor)
            return opt

        plain = mlpscape(
            gaussian,
            n,
            trial,
            lr=0.1,
            gamma=gamma,
            max_iter=30,
            thresholds=[0.6, 1e-9],
            model=model,
            optimizer=initialised,
        )
        assert traces(result)["losses"][n, trial, gamma, factor] == pytest.approx(
            plain.test[-1], **CLOSE
        )


def test_post_init_fn_trains_in_packs_where_nothing_it_takes_differs():
    def gently(model, opt):
        pass

    assert base({"POST_INIT_FN": gently}, [[1, 2]], ["GAMMA"]).pack_size == "auto"
    assert base({"POST_INIT_FN": halve, "factor": 1}).pack_size == "auto"
    assert base({"POST_INIT_FN": halve, "factor": 1}, [[1, 2]], ["GAMMA"]).pack_size == 1
    assert base({"POST_INIT_FN": halve}, [[1, 2]], ["factor"]).pack_size == 1
    assert base({"POST_INIT_FN": halve, "PACK_SIZE": 4}, [[1, 2]], ["factor"]).pack_size == 1
    assert base({"POST_INIT_FN": halve, "factor": 1}, [[4, 8]], ["WIDTH"]).pack_size == "auto"
    assert isinstance(base({"post_init_fn": gently}).parametrization, PostInit)


def test_post_init_fn_gets_the_rescaled_learning_rate(run, config, gaussian):
    def check(model, optimizer, lr, gamma, LR):
        assert lr == optimizer.param_groups[0]["lr"] == LR * gamma**2

    result = run(
        [[8], [0], [0.5]],
        ["ntrain", "trial", "GAMMA"],
        config(POST_INIT_FN=check),
        {"base_bfn": gaussian},
    )
    assert np.isfinite(list(result["losses"]["vals"].values())).all()


def test_a_parametrization_of_ours_counts(run, config, gaussian):
    settings = base({"MODEL_CLASS": Two, "PARAMETRIZATION": "ntp"})
    assert settings.parametrization == "ntp"
    found = base({}, [["mup", "sp"]], ["PARAMETRIZATION"])
    assert found.parametrization == "mup"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"MODEL_CLASS": 3}, "MODEL_CLASS: got 3; should be a class or function that makes a mode"),
        ({"optimizer": "Adm"}, r"torch\.optim has no optimizer 'Adm' \(did you mean 'Adam'\?\); v"),
        ({"OPTIMIZER_CLASS": 3}, "OPTIMIZER_CLASS: got 3; should be a class of torch.optim or its"),
        (
            {"loss": "MSLoss"},
            r"loss: got 'MSLoss' \(did you mean 'MSELoss'\?\); should be the name",
        ),
        ({"LOSS_CLASS": 3}, "LOSS_CLASS: got 3; should be a loss of torch.nn or its name"),
        ({"LOSS_FN": lambda: 3}, "LOSS_FN: <lambda> made 3; should make a loss"),
        ({"POST_INIT_FN": "mup"}, "POST_INIT_FN: got 'mup'; should be a function of model, opt"),
        ({"PARAMETRIZATION": "mop"}, r"PARAMETRIZATION: got 'mop'; should be one of 'mup'"),
        (
            {"POST_INIT_FN": print, "PARAMETRIZATION": "mup"},
            "PARAMETRIZATION and POST_INIT_FN: both initialise the model; keep one",
        ),
        ({"OPTIMIZER_INSTANCE": object()}, "OPTIMIZER_INSTANCE: an existing optimizer belongs to"),
        (
            {"MODEL_FILE": "x.py", "MODEL_NAME": "A"},
            "MODEL_FILE: got 'x.py'; should be the path of",
        ),
    ],
)
def test_bad_choices_are_refused(config, expected):
    with pytest.raises(SpecError, match=expected):
        base(config)


def test_what_post_init_fn_needs_and_returns_is_checked(run, config, gaussian):
    with pytest.raises(
        SpecError, match=r"POST_INIT_FN: halve needs 'factor'; available are DIM, E"
    ):
        base(config(POST_INIT_FN=halve))

    def replaced(model, opt):
        return nn.Linear(1, 1), opt

    with pytest.raises(SpecError, match=r"POST_INIT_FN replaced: returned another model or optim"):
        run([[8], [0]], ["n", "trial"], config(POST_INIT_FN=replaced), {"base_bfn": gaussian})


def test_a_file_without_the_class_or_that_raises(workplace):
    (workplace / "model.py").write_text("class Network: pass\n")
    (workplace / "broken.py").write_text("1 / 0\n")
    with pytest.raises(SpecError, match=r"model\.py has no 'Net' \(did you mean 'Network'\?\)"):
        base({"MODEL_FILE": "model.py", "MODEL_NAME": "Net"})
    with pytest.raises(SpecError, match=r"broken\.py raised ZeroDivisionError: division by zero"):
        base({"model_file": "broken.py", "model_name": "Net"})
