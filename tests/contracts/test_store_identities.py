"""The contract of stores for a request whose attempts come under different identities of one caller."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest

from libs.ownership.errors import NotOwner, RequestIdReused
from libs.ownership.limits import SERVED_WINDOW
from libs.ownership.model import ANONYMOUS, Answered, Call, Changed, Record, Served, Store, Version, bucket_of
from libs.ownership.terms import next_term
from libs.store.port import StorePorts
from tests.contracts.store_adapters import (
    ADAPTERS_AND_FORMS,
    hash_of,
    own,
    putting,
    record_of,
    row_of,
    sandbox,
    word_of,
    write,
)

pytestmark = pytest.mark.parametrize("adapter", ADAPTERS_AND_FORMS, ids=str, indirect=True)

KEY = "sandboxes/a"

NO_IDENTITY = (ANONYMOUS, ANONYMOUS)
"""Principal and subject at a process that authenticates nobody."""
VERIFIED = (ANONYMOUS, "idp:ann")
"""At a process that verifies, before the switch."""
SWITCHED = ("idp:ann", "idp:ann")
OTHER = ("idp:bob", "idp:bob")
OTHER_VERIFIED = (ANONYMOUS, "idp:bob")

OF_ANN = (NO_IDENTITY, VERIFIED, SWITCHED)
CHANGES = {f"r{number}": change for number, change in enumerate(product(OF_ANN, OF_ANN))}
"""Identities of the first attempt and of the retry, by request."""


def attempt(identity: tuple[str, str], request: str = "r1", word: str = "h") -> Call:
    principal, subject = identity
    return Call(KEY, principal, request, hash_of(word), subject=subject)


async def put(store: StorePorts, identity: tuple[str, str], request: str = "r1", word: str = "h") -> Changed | Answered:
    return await write(store, attempt(identity, request, word), putting(sandbox(KEY, request)))


async def first_attempts(store: StorePorts) -> dict[str, Answered]:
    """Return the answer to a retry, by request."""
    await own(store, [KEY])
    answers = {}
    for request, (first, _) in CHANGES.items():
        made = await put(store, first, request)
        assert isinstance(made, Changed) and made.served.principal == first[0]
        answers[request] = Answered(made.answer, made.version)
    return answers


async def retries(store: StorePorts) -> dict[str, Changed | Answered]:
    return {request: await put(store, then, request) for request, (_, then) in CHANGES.items()}


async def test_a_retry_under_another_identity_of_its_caller_gets_the_first_answer(store: StorePorts) -> None:
    answers = await first_attempts(store)
    assert await retries(store) == answers
    for request, (_, then) in CHANGES.items():
        with pytest.raises(RequestIdReused):
            await put(store, then, request, word="other content")


async def test_so_does_a_retry_at_the_store_that_the_record_has_moved_to(store: StorePorts, across: StorePorts) -> None:
    answers = await first_attempts(store)
    (result,) = (await store.transfers.release([KEY], across.store, create=False)).results
    assert result.record is not None
    await across.transfers.apply([result.record])
    assert await retries(across) == await retries(store) == answers
    assert isinstance(await put(across, SWITCHED, "new"), Changed)


async def test_so_does_a_retry_after_a_seizure(store: StorePorts) -> None:
    answers = await first_attempts(store)
    await store.seizures.seize(bucket_of(KEY), next_term(0, store.store))
    assert await retries(store) == answers


@pytest.mark.parametrize("new", [True, False], ids=["a create", "an update"])
async def test_concurrent_attempts_under_every_identity_have_one_effect(store: StorePorts, new: bool) -> None:
    await own(store, [KEY])
    if not new:
        await put(store, OTHER, "before")
    attempts = [put(store, identity) for identity in reversed(OF_ANN) for _ in range(4)]
    outcomes = await asyncio.gather(*attempts)
    assert sum(isinstance(one, Changed) for one in outcomes) == 1
    assert len({(one.answer, one.version) for one in outcomes}) == 1
    found = await store.records.read(KEY)
    assert found.version == outcomes[0].version == Version(0, 1 if new else 2)


@pytest.mark.parametrize("identity", [OTHER, OTHER_VERIFIED], ids=["switched", "verified"])
async def test_a_request_of_another_subject_is_another_request(store: StorePorts, identity: tuple[str, str]) -> None:
    await own(store, [KEY])
    assert isinstance(await put(store, SWITCHED), Changed)
    assert isinstance(await put(store, identity, word="other"), Changed)
    with pytest.raises(RequestIdReused):
        await put(store, identity)


async def test_a_caller_without_identity_gets_the_answer_to_its_own_content(store: StorePorts) -> None:
    """Two subjects have used one id. The newer one is not the caller's."""
    await own(store, [KEY])
    made = await put(store, SWITCHED)
    await put(store, OTHER, word="other")
    assert await put(store, NO_IDENTITY) == Answered(made.answer, Version(0, 1))


def ahead(owner: Store, *principals: str) -> Record:
    """Version (0, 1) with a request of each principal whose effect is in a later version."""
    late = [Served(name, "r1", hash_of("h"), Version(0, 3 + at), b"late") for at, name in enumerate(principals)]
    return record_of(row_of(KEY, (0, 1), owner, "one"), *late)


@pytest.mark.parametrize(
    "known", [(ANONYMOUS,), ("idp:ann",), (ANONYMOUS, "idp:ann")], ids=["anonymous", "subject", "both"]
)
@pytest.mark.parametrize("identity", [VERIFIED, SWITCHED], ids=["verified", "switched"])
async def test_a_request_that_runs_again_is_known_by_its_last_effect_under_every_identity(
    store: StorePorts, known: tuple[str, ...], identity: tuple[str, str]
) -> None:
    """An entry that was left as it is would count once the row has reached its version."""
    await store.transfers.apply([ahead(store.store, *known)])
    again = await put(store, identity)
    assert isinstance(again, Changed) and again.version == (0, 2)
    for number in range(4):
        await put(store, OTHER, f"later{number}")
    for then in OF_ANN:
        assert await put(store, then) == Answered(again.answer, Version(0, 2))


async def test_a_store_that_does_not_own_the_record_answers_no_attempt_without_an_effect(store: StorePorts) -> None:
    await store.transfers.apply([ahead(store.store.other, ANONYMOUS)])
    with pytest.raises(NotOwner):
        await put(store, SWITCHED)


async def test_a_release_carries_the_newest_requests_of_every_principal(store: StorePorts, across: StorePorts) -> None:
    await own(store, [KEY])
    identities = (NO_IDENTITY, VERIFIED, SWITCHED, OTHER)
    for number in range(SERVED_WINDOW + 8):
        await put(store, identities[number % 4], f"r{number}")
    (result,) = (await store.transfers.release([KEY], across.store, create=False)).results
    assert result.record is not None
    assert [one.request_id for one in result.record.served] == [f"r{number}" for number in range(8, SERVED_WINDOW + 8)]
    await across.transfers.apply([result.record])
    for number in range(8, SERVED_WINDOW + 8):
        then = OTHER_VERIFIED if identities[number % 4] is OTHER else SWITCHED
        answered = await put(across, then, f"r{number}")
        assert isinstance(answered, Answered) and word_of(answered.answer) == f"r{number}"
