"""The numbers of ``run_job_iterator`` are those of MLPscape's loop, in plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlpsubmit.compat import Monomial, base_args, get_synthetic_X, polynomial_batch_fn

CLOSE = {"rel": 2e-4, "abs": 1e-6}


def readin_trace(model, **kwargs):
    return model.input_layer.weight.square().sum().item()


def mean_output(model, X_tr, X_te, **kwargs):
    return np.array([model(X_tr).mean().item(), model(X_te).square().mean().item()])


def test_online_with_gamma_as_an_iterator(run, config, gaussian, traces, mlpscape):
    iterators = [[8, 16], range(2), [0.5, 1, 2.0]]
    result = run(
        iterators,
        ["ntrain", "trial", "GAMMA"],
        config(GAMMA=[0.5, 1, 2.0], otherreturns={"trace": readin_trace, "out": mean_output}),
        {"base_bfn": gaussian, "dim": 4, "noise": 0.1},
    )
    assert result["var_axes"] == ["ntrain", "trial", "GAMMA"]
    assert len(result["jobs"]) == 12
    found = traces(result)
    for n, trial, gamma in result["jobs"]:
        plain = mlpscape(
            gaussian,
            n,
            trial,
            lr=0.1,
            max_iter=30,
            thresholds=[0.6, 1e-9],
            gamma=gamma,
            noise=0.1,
            grabs={"trace": readin_trace, "out": mean_output},
        )
        job = n, trial, gamma
        assert found["losses"][job] == pytest.approx(plain.test[-1], **CLOSE)
        assert found["timekeys"][job].tolist() == plain.timekeys.tolist()
        assert found["trace"][job] == pytest.approx(float(plain.grabs["trace"][-1]), **CLOSE)
        # Grabs see the batch of the last step, and the test set.
        assert found["out"][job] == pytest.approx(plain.grabs["out"][-1], **CLOSE)
    assert found["timekeys"][:, :, :].min() == -1
    assert found["timekeys"][:, :, :].max() > 0


def test_offline_traces(run, config, gaussian, traces, mlpscape):
    result = run(
        [[8, 12], [0, 1]],
        ["ntrain", "trial"],
        config(ONLINE=False, ONLYTHRESHOLDS=False, otherreturns={"trace": readin_trace}),
        {"base_bfn": gaussian, "noise": 0.5},
    )
    found = traces(result)
    for job in result["jobs"]:
        plain = mlpscape(
            gaussian,
            *job,
            lr=0.1,
            max_iter=30,
            thresholds=[0.6, 1e-9],
            online=False,
            noise=0.5,
            grabs={"trace": readin_trace},
        )
        assert found["losses"][job].shape == (30,)
        assert found["losses"][job] == pytest.approx(plain.test, **CLOSE)
        assert found["trace"][job] == pytest.approx(np.array(plain.grabs["trace"]), **CLOSE)
        assert found["timekeys"][job].tolist() == plain.timekeys.tolist()
        # The loss on the training set is not the loss on the test set.
        assert plain.test[-1] != pytest.approx(plain.train[-1], rel=1e-2)


def test_a_config_keeps_its_last_values_after_its_last_threshold(
    run, config, gaussian, traces, mlpscape
):
    result = run(
        [[64], [0]],
        ["ntrain", "trial"],
        config(LOSS_CHECKPOINTS=0.5, ONLYTHRESHOLDS=False, otherreturns={"trace": readin_trace}),
        {"base_bfn": gaussian},
    )
    plain = mlpscape(
        gaussian,
        64,
        0,
        lr=0.1,
        max_iter=30,
        thresholds=[0.5],
        grabs={"trace": readin_trace},
    )
    assert plain.steps < 30
    found = traces(result)
    assert result["timekeys"]["vals"] == {(64, 0): [plain.steps - 1]}
    assert found["losses"][64, 0] == pytest.approx(plain.test, **CLOSE)
    assert found["trace"][64, 0][plain.steps - 1 :] == pytest.approx(
        float(plain.grabs["trace"][-1]), **CLOSE
    )


def test_monomials_as_an_iterator(run, traces, mlpscape):
    """The synthetic study of MLPscape's examples: whitened Hermite polynomials of new inputs."""
    args = base_args()
    args.datasethps = {"normalized": True, "d": 6, "offset": 6, "alpha": 1.0, "beta": 1.2}
    args.TARGET_MONOMIALS = [Monomial({0: 1}), Monomial({1: 2}), Monomial({0: 1, 2: 1})]
    args.N_SAMPLES, args.NUM_TRIALS, args.N_TOT = [32], 2, 200
    args.MAX_ITER, args.LR, args.WIDTH, args.LOSS_CHECKPOINTS = 2e1, 0.05, 16, [0.9, 0.5]
    X_full, data_eigvals = get_synthetic_X(
        **args.datasethps, N=args.N_TOT, gen=torch.Generator().manual_seed(args.SEED)
    )
    _, lambdas, Vt = torch.linalg.svd(X_full, full_matrices=False)
    arguments = {"lambdas": lambdas, "Vt": Vt, "data_eigvals": data_eigvals, "N": args.N_TOT}
    result = run(
        [args.N_SAMPLES, range(args.NUM_TRIALS), args.TARGET_MONOMIALS],
        ["ntrain", "trial", "monomials"],
        {**vars(args), "DIM": 6, "otherreturns": {}},
        {**arguments, "base_bfn": polynomial_batch_fn},
    )
    assert [job[2] for job in result["jobs"][:3]] == ["$x_{0}$", "$x_{1}^2$", "$x_{0}x_{2}$"]
    found = traces(result)
    for n, trial, text in result["jobs"]:
        plain = mlpscape(
            polynomial_batch_fn,
            n,
            trial,
            lr=0.05,
            max_iter=20,
            thresholds=[0.9, 0.5],
            smoother=0.9,
            width=16,
            seed=42,
            n_test=10_000,
            monomials=Monomial.from_repr(text),
            **arguments,
        )
        assert found["losses"][n, trial, text] == pytest.approx(plain.test[-1], **CLOSE)
        assert found["timekeys"][n, trial, text].tolist() == plain.timekeys.tolist()


def test_a_fixed_test_set(run, config, gaussian, traces):
    X_te = np.random.default_rng(0).normal(size=(5, 4))
    y_te = X_te[:, 0]

    def seen(X_te, y_te, **kwargs):
        return torch.cat([X_te.flatten(), y_te])

    result = run(
        [[8], [0]],
        ["ntrain", "trial"],
        config(ONLINE=False, X_te=X_te, y_te=torch.as_tensor(y_te), otherreturns={"seen": seen}),
        {"base_bfn": gaussian},
    )
    expected = np.concatenate([X_te.ravel(), y_te])
    assert traces(result)["seen"][8, 0] == pytest.approx(expected, rel=1e-6)


def test_trials_differ_and_other_axes_see_the_same_draws(run, config, gaussian, traces):
    result = run(
        [[8], [0, 1], [0.5, 2.0]],
        ["ntrain", "trial", "GAMMA"],
        config(otherreturns={"first": lambda X_tr, **_: X_tr[0]}, MAX_ITER=1),
        {"base_bfn": gaussian},
    )
    first = traces(result)["first"][:, :, :]
    assert np.array_equal(first[0, :, 0], first[0, :, 1])
    assert not np.isclose(first[0, 0], first[0, 1]).any()
