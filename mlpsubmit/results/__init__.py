"""The results of a run as one labelled dataset, with missing points masked."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
