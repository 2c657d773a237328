"""Data: target functions, Gaussian inputs, images and arrays.

The names are imported on first use, so that ``Monomial`` costs no torch; ``__init__.pyi`` lists
them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
