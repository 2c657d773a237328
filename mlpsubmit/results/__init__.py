"""A run's results as one labelled dataset, whatever is missing of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
