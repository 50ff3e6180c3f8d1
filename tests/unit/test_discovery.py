"""The subscriptions of an xDS client: state of the world, nonces, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.discovery import (
    CLUSTERS,
    ENDPOINTS,
    LISTENERS,
    MOST_NAMES,
    ROUTES,
    TYPES,
    Request,
    Resource,
    Response,
    Snapshot,
    Subscriptions,
    TooManyNames,
)


def state(version: str = "1", **endpoints: bytes) -> Snapshot:
    """Clusters and endpoints of these names, one listener that only clients which name it get, and one for all."""
    found = {
        CLUSTERS: {name: Resource(name.encode()) for name in endpoints},
        ENDPOINTS: {name: Resource(data) for name, data in endpoints.items()},
        LISTENERS: {"service": Resource(b"api", named_only=True), "envoy": Resource(b"socket")},
        ROUTES: {"baton": Resource(b"routes")},
    }
    return Snapshot(found, dict.fromkeys(TYPES, version))


def sent(client: Subscriptions, snapshot: Snapshot) -> list[Response]:
    """All responses that are due."""
    found = []
    while (response := client.next_response(snapshot)) is not None:
        found.append(response)
    return found


def subscribed(type_url: str, *names: str, to: Snapshot) -> tuple[Subscriptions, Response]:
    client = Subscriptions()
    client.note(Request(type_url, names))
    (response,) = sent(client, to)
    return client, response


def test_a_client_gets_the_resources_that_it_names() -> None:
    now = state(a=b"1", b=b"2")
    _, response = subscribed(ENDPOINTS, "b", to=now)
    assert response == Response(ENDPOINTS, "1", "1", (b"2",))


def test_a_client_that_names_none_gets_all_but_those_that_must_be_named() -> None:
    _, listeners = subscribed(LISTENERS, to=state())
    assert listeners.resources == (b"socket",)
    _, named = subscribed(LISTENERS, "service", to=state())
    assert named.resources == (b"api",)
    _, clusters = subscribed(CLUSTERS, "*", to=state(a=b"", b=b""))
    assert clusters.resources == (b"a", b"b")


def test_endpoints_and_routes_must_be_named() -> None:
    client = Subscriptions()
    client.note(Request(ENDPOINTS))
    client.note(Request(ROUTES))
    assert sent(client, state(a=b"1")) == []


def test_a_listener_that_does_not_exist_is_answered_by_none() -> None:
    _, response = subscribed(LISTENERS, "other", to=state())
    assert response.resources == ()


def test_an_accepted_response_is_not_repeated() -> None:
    now = state(a=b"1")
    client, response = subscribed(ENDPOINTS, "a", to=now)
    client.note(Request(ENDPOINTS, ("a",), response.nonce))
    assert sent(client, now) == []
    assert sent(client, state("2", a=b"1")) == [], "a new version of the same resource"


def test_a_change_is_sent_whether_the_last_response_was_answered_or_not() -> None:
    client, _ = subscribed(ENDPOINTS, "a", to=state(a=b"1"))
    (response,) = sent(client, state("2", a=b"2"))
    assert (response.resources, response.nonce, response.version) == ((b"2",), "2", "2")


def test_only_the_newest_of_many_changes_is_sent() -> None:
    client, _ = subscribed(ENDPOINTS, "a", to=state(a=b"1"))
    for number in range(2, 100):
        newest = state(str(number), a=str(number).encode())
    assert [response.resources for response in sent(client, newest)] == [(b"99",)]


def test_a_refused_response_is_not_repeated_until_it_changes() -> None:
    now = state(a=b"1")
    client, response = subscribed(ENDPOINTS, "a", to=now)
    assert client.note(Request(ENDPOINTS, ("a",), response.nonce, "bad port")) == "bad port"
    assert (sent(client, now), client.refusals) == ([], ["bad port"])
    (again,) = sent(client, state("2", a=b"2"))
    assert client.refusals == [], "the newer response may be accepted"
    client.note(Request(ENDPOINTS, ("a",), again.nonce))
    assert client.refusals == []


def test_an_answer_to_an_older_response_changes_nothing() -> None:
    client, old = subscribed(ENDPOINTS, "a", to=state(a=b"1"))
    sent(client, state("2", a=b"2"))
    assert client.note(Request(ENDPOINTS, ("b",), old.nonce, "too late")) == ""
    assert client.refusals == []
    assert [response.resources for response in sent(client, state("3", a=b"3", b=b"b"))] == [(b"3",)]


def test_a_new_name_is_answered_and_a_name_less_is_not() -> None:
    now = state(a=b"1", b=b"2")
    client, first = subscribed(ENDPOINTS, "a", to=now)
    client.note(Request(ENDPOINTS, ("a", "b"), first.nonce))
    (second,) = sent(client, now)
    assert second.resources == (b"1", b"2")
    client.note(Request(ENDPOINTS, ("b",), second.nonce))
    assert sent(client, now) == []
    client.note(Request(ENDPOINTS, ("a", "b"), second.nonce))
    assert [response.resources for response in sent(client, now)] == [(b"1", b"2")], "it has forgotten the first one"


def test_a_client_that_named_a_listener_and_then_none_gets_none() -> None:
    client, first = subscribed(LISTENERS, "service", to=state())
    client.note(Request(LISTENERS, (), first.nonce))
    assert all(not response.resources for response in sent(client, state()))


def test_clusters_are_sent_before_the_routes_that_name_them() -> None:
    client = Subscriptions()
    for type_url, names in ((ROUTES, ("baton",)), (LISTENERS, ()), (ENDPOINTS, ("a",)), (CLUSTERS, ())):
        client.note(Request(type_url, names))
    assert tuple(response.type_url for response in sent(client, state(a=b"1"))) == TYPES


def test_a_client_cannot_name_more_resources_than_there_may_be() -> None:
    with pytest.raises(TooManyNames):
        Subscriptions().note(Request(ENDPOINTS, [str(number) for number in range(MOST_NAMES + 1)]))


def test_an_unknown_type_is_ignored() -> None:
    client = Subscriptions()
    client.note(Request("type.googleapis.com/other", ("a",)))
    assert sent(client, state(a=b"1")) == []


contents = st.dictionaries(st.sampled_from("abc"), st.sampled_from([b"1", b"2"]), max_size=3)


@given(st.lists(st.one_of(contents, st.lists(st.sampled_from("abc"), unique=True), st.just(None)), max_size=30))
def test_a_client_that_answers_ends_with_the_newest_state_of_its_names(steps: list[object]) -> None:
    """Steps: a new state, new names with the next answer, or an answer."""
    client, now, names, nonce = Subscriptions(), state(a=b"1"), ["a"], ""
    known: dict[str, bytes] = {}
    client.note(Request(ENDPOINTS, names))
    for step in steps:
        if isinstance(step, dict):
            now = state(**step)
        elif isinstance(step, list):
            names = step
            client.note(Request(ENDPOINTS, names, nonce))
        else:
            for response in sent(client, now):
                nonce = response.nonce
    for _ in range(2):
        for response in sent(client, now):
            nonce = response.nonce
        client.note(Request(ENDPOINTS, names, nonce))
    assert sent(client, now) == []
    wanted = {name: resource.data for name, resource in now.resources[ENDPOINTS].items() if name in names}
    last = client._of[ENDPOINTS].sent or {}
    known = {name: data for name, data in last.items() if name in names}
    assert known == wanted
