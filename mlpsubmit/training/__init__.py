"""The train loop, and what it is made of; it knows neither jobs nor the files of a run.

The public names are imported on first use, so that importing this package does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
