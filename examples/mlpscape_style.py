"""How long does an MLP take to learn each monomial? A script written for MLPscape.

Only its imports belong to this package. It has iterators, a batch function with its configuration,
grabs, and a pickle at the end. A second run trains only what is missing; with
MLPSUBMIT_EXECUTOR=slurm it trains on a cluster.

    python examples/mlpscape_style.py
    python examples/mlpscape_style.py --NUM_TRIALS 3
"""

import os

import torch
import torch.multiprocessing as mp

from mlpsubmit.compat import (
    ExptTrace,
    FileManager,
    Monomial,
    build_other_grabs,
    ensure_torch,
    generate_hea_monomials,
    get_relu_level_coeff_fn,
    get_synthetic_X,
    parse_args,
    polynomial_batch_fn,
    run_job_iterator,
)


def mean_square_output(model, X_tr, **kwargs):
    with torch.no_grad():
        return model(ensure_torch(X_tr)).square().mean().item()


if __name__ == "__main__":
    args = parse_args()

    # Change the defaults.
    args.ONLINE = True
    args.N_SAMPLES = [128]
    args.N_TEST = 500
    args.N_TOT = 5000
    args.WIDTH = 64
    args.MAX_ITER = 2e3
    args.LR = 0.1
    args.GAMMA = [0.3, 1]
    args.LOSS_CHECKPOINTS = [0.5, 0.3]
    args.TARGET_MONOMIALS = [Monomial({0: 1}), Monomial({1: 1}), Monomial({0: 1, 1: 1})]
    args.datasethps = {"d": 10, "offset": 6, "alpha": 2.0, "cutoff_mode": 500}
    args.other_model_grabs = {"W_trace": "get_W_trace"}

    iterators = [args.N_SAMPLES, range(args.NUM_TRIALS), args.GAMMA, args.TARGET_MONOMIALS]
    iterator_names = ["ntrain", "trial", "GAMMA", "monomials"]

    expt_fm = FileManager(os.path.join(os.getenv("EXPTPATH", "."), "mlpscape_style"))

    gen = torch.Generator().manual_seed(args.SEED)
    X_full, data_eigvals = get_synthetic_X(**args.datasethps, N=args.N_TOT, gen=gen)
    hea_eigvals, monomials = generate_hea_monomials(
        data_eigvals,
        num_monomials=args.datasethps["cutoff_mode"],
        eval_level_coeff=get_relu_level_coeff_fn(data_eigvals, weight_variance=1, bias_variance=1),
        kmax=4,
    )
    U, lambdas, Vt = torch.linalg.svd(X_full, full_matrices=False)

    bfn_config = {
        "base_bfn": polynomial_batch_fn,
        "lambdas": lambdas,
        "Vt": Vt,
        "data_eigvals": data_eigvals,
        "N": args.N_TOT,
    }

    global_config = args.__dict__.copy()
    global_config["DIM"] = X_full.shape[1]

    grabs = build_other_grabs(
        args.other_model_grabs,
        default_source=args.W_source,
        concat_outside=args.concat_outside,
        per_alias_gram=args.other_model_gram,
        per_alias_kwargs=args.other_model_kwargs,
    )
    grabs.update({"output": mean_square_output})
    global_config.update({"otherreturns": grabs})

    mp.set_start_method("spawn", force=True)

    result = run_job_iterator(iterators, iterator_names, global_config, bfn_config=bfn_config)
    expt_fm.save(result, "result.pickle")

    timekeys = ExptTrace.deserialize(result["timekeys"])
    losses = ExptTrace.deserialize(result["losses"])
    for target in args.TARGET_MONOMIALS:
        eigval = hea_eigvals[monomials.index(target)]
        for gamma in args.GAMMA:
            steps = timekeys.get(GAMMA=gamma, monomials=str(target))[..., -1].ravel().tolist()
            loss = losses.get(GAMMA=gamma, monomials=str(target)).mean()
            print(f"{target!s:18} {eigval:.4f} GAMMA={gamma:<4} steps {steps} loss {loss:.3f}")
