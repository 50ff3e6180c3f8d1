"""The size of the storm and recovery tests: short in `make test`, in full in `make storms`."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

FULL = os.environ.get("BATON_TEST_STORMS", "short") == "full"


def sized(short: T, full: T) -> T:
    """The value for this run."""
    return full if FULL else short
