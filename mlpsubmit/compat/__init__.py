"""The names of MLPscape's and modelscape's scripts, on top of sweeps and runs.

A script written for these runs here with other imports, and little else to change;
docs/mlpscape.md is the guide. The names are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
