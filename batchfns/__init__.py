"""Data: target functions, Gaussian inputs, images and arrays.

The names, listed in ``__init__.pyi``, are imported on first use, so that ``Monomial`` does not
import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
