"""The size of the storm and recovery tests: short in `make test`, in full in `make storms`."""

from __future__ import annotations

import os
from typing import TypeVar

import pytest

T = TypeVar("T")

FULL = os.environ.get("BATON_TEST_STORMS", "short") == "full"

only_in_full = pytest.mark.skipif(
    not FULL,
    reason="runs in `make storms`: test_direct_storms.py has it with clients of three kinds",
)


def sized(short: T, full: T) -> T:
    """The value for this run."""
    return full if FULL else short
