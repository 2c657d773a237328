"""What all tests share."""

import os

import pytest
import torch


def pytest_configure() -> None:
    """Give each of several workers one thread: two that share two cores wait for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests that need a GPU out of the collection on machines that have none."""
    if not torch.cuda.is_available():
        without = [item for item in items if item.get_closest_marker("gpu") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in without])
        items[:] = without
