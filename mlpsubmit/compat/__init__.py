"""The names that scripts of MLPscape and modelscape import, on top of sweeps and runs.

Such a script runs once its imports name this package; docs/mlpscape.md is the guide. The names are
imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
