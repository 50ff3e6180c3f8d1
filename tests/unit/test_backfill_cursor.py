"""Where a backfill goes on."""

from __future__ import annotations

from services.router.flows.jobs.backfill import Cursor


def test_a_cursor_goes_on_where_it_was() -> None:
    assert Cursor.decode(b"") == Cursor("")
    assert Cursor.decode(Cursor("sandboxes/x").encode()) == Cursor("sandboxes/x")


def test_a_checkpoint_in_the_order_of_buckets_begins_anew() -> None:
    """The release before copied by bucket: other keys than those before this one were copied."""
    assert Cursor.decode(b'[17, "sandboxes/x"]') == Cursor("")
