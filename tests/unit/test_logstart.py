"""Start positions in the log: their text forms and their meaning."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from libs.errors import InvalidField
from services.router.core.retention import Start, parse_start, typed_start

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC).timestamp()
HOUR = 3600.0


@pytest.mark.parametrize(
    ("typed", "kept", "meant"),
    [
        ("start", "start", Start()),
        ("10:00", "2026-05-04T10:00:00+00:00", Start(NOON - 2 * HOUR)),
        ("12:00", "2026-05-04T12:00:00+00:00", Start(NOON)),
        ("12:00:01", "2026-05-03T12:00:01+00:00", Start(NOON - 24 * HOUR + 1)),
        ("2026-05-04T10:00", "2026-05-04T10:00:00+00:00", Start(NOON - 2 * HOUR)),
        ("2026-05-04 10:00+02:00", "2026-05-04T08:00:00+00:00", Start(NOON - 4 * HOUR)),
        ("2026-05-04T10:00:00.5Z", "2026-05-04T10:00:00.500000+00:00", Start(NOON - 2 * HOUR + 0.5)),
        ("3/1200", "3/1200", Start(positions={3: 1200})),
        (" 3/1200,0/0 ", "3/1200,0/0", Start(positions={3: 1200, 0: 0})),
    ],
)
def test_what_is_typed_is_kept_in_full_and_means_the_same(typed: str, kept: str, meant: Start) -> None:
    assert typed_start(typed, NOON) == kept
    assert parse_start(kept) == meant


NONSENSE = """
now;25:00;10:60;10;3/;/3;3/x;3/1,3/2;3/1,,4/1;2026-13-01;0001-01-01T00:00+23:00;2026-05-04T12:00:01;1969-12-31;-3/5
9999-12-31T23:59-23:00
"""


@pytest.mark.parametrize("typed", ["", *NONSENSE.replace("\n", ";").strip(";").split(";")])
def test_what_makes_no_sense_is_refused_with_what_would(typed: str) -> None:
    with pytest.raises(InvalidField, match=r"start: .* is not valid: "):
        typed_start(typed, NOON)


@pytest.mark.parametrize("text", ["10:00", "2026-05-04T10:00", "", "then"])
def test_what_is_kept_leaves_nothing_to_guess(text: str) -> None:
    with pytest.raises(InvalidField):
        parse_start(text)
