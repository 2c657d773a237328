"""Sweeps of small neural networks, packed onto GPUs and submitted as SLURM job arrays.

The public names are imported on first use, so that the command line starts fast;
``__init__.pyi`` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
