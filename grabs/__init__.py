"""Measurements taken inside the train loop.

A grab is a function that returns a scalar or an array. Its arguments are supplied by name:
``model``, ``model0`` (the network at initialisation), ``X_tr``, ``y_tr``, ``X_te``, ``y_te``,
``opt``, hyperparameters, axes and data entries. The names are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
