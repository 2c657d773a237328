"""The network of MLPscape's scripts: the library's own."""

from mlpsubmit.training.models import MLP

__all__ = ["MLP"]
