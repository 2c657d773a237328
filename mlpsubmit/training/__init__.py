"""The train loop and its parts. It imports neither sweeps nor grabs nor the files of a run.

The public names are imported on first use, so that importing this package does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
