"""The tests in this folder share modules, also with the processes that they start."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

#: Which file a descriptor is of is read from /proc.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]

sys.path.insert(0, str(Path(__file__).parent))

_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
for name, examples, steps in (("day", 24, 8), ("night", 200, 20)):
    settings.register_profile(
        name,
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=_CHECKS,
        derandomize=name == "day",
    )
