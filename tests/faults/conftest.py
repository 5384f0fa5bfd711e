"""Longer forms run when asked for: FULLPASS_FAULTS=long (`make faults`), =history (`make history`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

ASKED = os.environ.get("FULLPASS_FAULTS")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: only in the long form of the fault suite")
    config.addinivalue_line("markers", "history: a year of work, only where that is asked for")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [
        item
        for item in items
        if any(item.get_closest_marker(name) for name in {"long", "history"} - {ASKED})
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
