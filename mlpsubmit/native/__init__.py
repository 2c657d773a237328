"""Functions in C for CPUs, compiled where they are first used.

- ``compiler``: compiles and keeps them;
- ``library``: loads them, for tensors;
- ``cpu``: this machine's CPU;
- ``vectors.h``, ``product.h``: vectors of the widest registers, and products of matrices;
- ``threads.h``: the threads of one call;
- ``mlp.c``: outputs, losses and gradients of MLPs;
- ``losses.c``: smoothing of losses, and thresholds;
- ``optimizers.c``: updates of parameters;
- ``draws.c``: Gaussian random numbers.
"""
