"""Measurements taken inside the train loop.

A grab is a function of what it declares out of ``model``, ``model0`` (the network at
initialisation), ``X_tr``, ``y_tr``, ``X_te``, ``y_te``, ``opt``, the hyperparameters, the axes and
the data entries. It returns a scalar or an array. The names are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
