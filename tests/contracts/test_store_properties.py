"""Properties of any sequence of events and any story, beyond the golden ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from libs.clock import ManualClock
from libs.ownership.model import Record, Store, bucket_of
from libs.store.inspection import ExportQuery
from libs.store.limits import OutboxLimits
from libs.store.port import StorePorts
from tests.contracts.store_adapters import (
    ADAPTERS_AND_FORMS,
    MEMORY_A,
    MEMORY_B,
    Place,
    open_adapter,
    record_of,
    row_of,
    served_of,
)
from tests.contracts.store_transcript import Case, Exchange, Teller

pytestmark = pytest.mark.parametrize("adapter", ADAPTERS_AND_FORMS, ids=str, indirect=True)

# The store lives through all examples; each has keys of its own.
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_numbers = itertools.count()


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[tuple[int, int, Store, bool]], list[list[int]]]:
    """Versions of one record, each made once, in one term (`test_store_recovery` covers higher terms), and batches in
    which they arrive: in any order, repeated."""
    versions = draw(st.lists(st.tuples(st.just(0), st.integers(1, 20)), min_size=1, max_size=6, unique=True))
    made = [(*version, draw(st.sampled_from(list(Store))), draw(st.booleans())) for version in versions]
    arrivals = draw(st.permutations(range(len(made))))
    repeats = draw(st.lists(st.integers(0, len(made) - 1), max_size=6))
    stream = [*arrivals, *repeats]
    cut = draw(st.integers(0, len(stream)))
    return made, [stream[:cut], stream[cut:]]


def _record(key: str, term: int, revision: int, owner: Store, live: bool) -> Record:
    row = row_of(key, (term, revision), owner, f"{term}-{revision}", **({} if live else {"deleted": "yes"}))
    return record_of(row, served_of(f"r{term}-{revision}", (term, revision), row.payload))


@EXAMPLES
@given(delivery=deliveries())
async def test_apply_is_a_join(
    store: StorePorts, delivery: tuple[list[tuple[int, int, Store, bool]], list[list[int]]]
) -> None:
    made, batches = delivery
    key = f"sandboxes/join-{next(_numbers):06d}"
    records = [_record(key, *one) for one in made]
    counted = [await store.transfers.apply([records[number] for number in batch]) for batch in batches]
    (exported,), _ = await store.inspection.export(ExportQuery(buckets=(bucket_of(key),), after=before(key), limit=1))
    found = await store.records.read(key)
    newest = max(records, key=lambda record: record.row.version)
    assert found.row == newest.row
    assert sum(counts.applied + counts.old for counts in counted) == sum(map(len, batches))
    assert exported.row == newest.row
    assert set(exported.served) == {served for record in records for served in record.served}


def before(key: str) -> str:
    """A key below which nothing else is: the examples' keys differ in their digits only."""
    return key[:-1] + chr(ord(key[-1]) - 1) + "~"


_KEYS = st.sampled_from("abc")
_REQUESTS = st.sampled_from(["r1", "r2", "r3", "r4"])
_VERSIONS = st.builds("{}-{}".format, st.integers(0, 1), st.integers(1, 6))
_WHO = st.sampled_from(["me", "other"])
_ACTIONS = st.sampled_from(["put w1 state=RUNNING", "put w2 label=k:v", "delete w3", "keep", "check w4", "refuse"])

_COMMANDS = st.one_of(
    st.builds("write sandboxes/{} {} {}".format, _KEYS, _REQUESTS, _ACTIONS),
    st.builds("write sandboxes/{} {} put other hash=other".format, _KEYS, _REQUESTS),
    st.sampled_from(["release sandboxes/a sandboxes/b", "release create sandboxes/c sandboxes/a"]),
    # A record has served no request whose version is above its own.
    st.builds("apply sandboxes/{} {} {} w5 served=r3@0-1:w6,r4@0-1:w7".format, _KEYS, _VERSIONS, _WHO),
    st.builds("apply sandboxes/{} {} me - write=0-0".format, _KEYS, _VERSIONS),
    st.builds("release-bucket sandboxes/{}".format, _KEYS),
    st.builds("adopt-bucket sandboxes/{} 0 {} {}".format, _KEYS, st.integers(1, 5), _WHO),
    st.builds("ack sandboxes/{}@{}".format, _KEYS, _VERSIONS),
    st.sampled_from(["list after=sandboxes/ deleted", "list after=sandboxes/ state=RUNNING", "tick 250", "prune"]),
    st.sampled_from(["list after=sandboxes/ label=k:v", "export after=sandboxes/", "outbox"]),
    st.builds("read sandboxes/{}".format, _KEYS),
)


@pytest.fixture
def used_buckets() -> set[int]:
    """Buckets of earlier examples: a bucket owner that they moved must not be met again."""
    return set()


def _fresh_mark(used_buckets: set[int]) -> str:
    for _ in range(10_000):
        mark = f"sandboxes/{next(_numbers):06d}"
        buckets = {bucket_of(mark + name) for name in "abc"}
        if not buckets & used_buckets:
            used_buckets |= buckets
            return mark
    pytest.fail("the examples have used up all buckets")


@EXAMPLES
@given(commands=st.lists(_COMMANDS, min_size=5, max_size=25))
@example(["write sandboxes/c r4 put w1", "apply sandboxes/c 0-1 me w5 served=r3@0-1:w6", "release sandboxes/c"])
async def test_any_story_is_told_as_the_memory_store_tells_it(
    store: StorePorts, tmp_path: Path, used_buckets: set[int], commands: list[str]
) -> None:
    """Each beside a fresh memory store; in the store under test the keys of earlier examples come first."""
    mark = _fresh_mark(used_buckets)
    case = Case("any", [Exchange(command.replace("sandboxes/", mark)) for command in commands])
    reference = MEMORY_A if store.store is Store.A else MEMORY_B
    async with open_adapter(reference, Place(tmp_path, "", ManualClock(), OutboxLimits())) as memory:
        expected = await Teller(memory).run(case)
    await _empty(store)
    told = await Teller(store).run(case)
    for ours, theirs in zip(told.exchanges, expected.exchanges, strict=True):
        if ours.command == "prune":
            continue  # Also removes leftovers of earlier examples.
        assert ours == theirs


async def _empty(store: StorePorts) -> None:
    """So that a pull sees only this example's, also after one that failed."""
    while entries := await store.outbox.pull(1000, 0):
        await store.outbox.ack([(entry.key, entry.version) for entry in entries])
