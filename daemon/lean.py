"""Imports that leave out what a worker has no use for.

httpx and structlog take `rich` and `pygments` along wherever these are installed, for a command and
for tracebacks that are never shown here: 8 MB in every worker. Both go without when they are not
there, so for the moment of the import they are not (docs/decisions/0116).
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Let a library be imported as if these were not installed."""
    loaded = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: it is not there
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(loaded)
