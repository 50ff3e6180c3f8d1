"""Codes of events: what the format says, to the bit.

`golden/event_codes.json` is for other implementations too: each case has all that is signed, and the header.
"""

import hashlib
import hmac
import json
import string
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.eventlog.cloudevents import HeaderWriter
from libs.eventlog.codes import HEADER, Codes
from libs.eventlog.key_ring import KeyRing
from libs.eventlog.port import Event

GOLDEN: Mapping[str, Any] = json.loads((Path(__file__).parent / "golden" / "event_codes.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
KEYS = {name: bytes.fromhex(key) for name, key in GOLDEN["keys"].items()}
TOPIC = "baton.events"
HEADERS = HeaderWriter("A", "baton.record.v1").write("sandboxes/a", (0, 1), 1.0, "00-1-2-01")


def codes(sign: str = "old", topic: str = TOPIC, keys: Mapping[str, bytes] = KEYS) -> Codes:
    ring = KeyRing(sign, keys)
    return Codes(lambda: ring, topic)


def event_of(case: Mapping[str, Any]) -> Event:
    headers = tuple((name, bytes.fromhex(content)) for name, content in case["headers"])
    return Event(case["key"], bytes.fromhex(case["value"]), headers)


def by_the_book(key_id: str, key: bytes, topic: str, event: Event) -> bytes:
    """The format, written once more from its description."""

    def text(content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + content

    counted = [
        (name, content)
        for name, content in event.headers
        if name.lower() == "content-type"
        or (name.lower().startswith(("ce_", "baton-")) and name.lower() != "baton-mac")
    ]
    message = b"baton event 1\x00" + text(key_id.encode()) + text(topic.encode()) + text(event.key.encode())
    message += len(counted).to_bytes(4, "big")
    message += b"".join(text(name.encode()) + text(content) for name, content in counted)
    message += text(event.value)
    return f"1:{key_id}:{hmac.new(key, message, hashlib.sha256).hexdigest()}".encode()


@pytest.mark.parametrize("name", CASES)
def test_a_golden_event_has_the_golden_code(name: str) -> None:
    case = CASES[name]
    mac, event = case["mac"].encode(), event_of(case)
    signer = codes(case["sign"], case["topic"])
    assert signer.sign(event) == replace(event, headers=(*event.headers, (HEADER, mac)))
    assert signer.why_wrong(signer.sign(event)) == ""
    assert by_the_book(case["sign"], KEYS[case["sign"]], case["topic"], event) == mac


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_NAMES = st.sampled_from(["ce_type", "CE_Type", "ce_", "content-type", "baton-x", "traceparent", "x" * 70]) | _TEXT
_EVENTS = st.builds(Event, _TEXT, st.binary(max_size=40), st.lists(st.tuples(_NAMES, st.binary(max_size=8))).map(tuple))


def _is_code(name: str) -> bool:
    return name.lower() == HEADER


def counted(event: Event) -> tuple[Any, ...]:
    """What a change must not touch."""
    headers = [(name, content) for name, content in event.headers if by_name(name)]
    return event.key, event.value, tuple(headers)


def by_name(name: str) -> bool:
    lower = name.lower()
    return lower == "content-type" or (lower.startswith(("ce_", "baton-")) and not _is_code(name))


@given(_EVENTS, _TEXT)
def test_each_code_is_that_of_the_description(event: Event, topic: str) -> None:
    assume(not any(_is_code(name) for name, _ in event.headers))
    signed = codes(topic=topic).sign(event)
    assert signed.headers[-1] == (HEADER, by_the_book("old", KEYS["old"], topic, event))
    assert codes(topic=topic).why_wrong(signed) == ""
    assert signed.value is event.value


@given(_EVENTS, _EVENTS, _TEXT, _TEXT)
def test_the_code_of_one_event_is_right_for_no_other(one: Event, other: Event, topic: str, other_topic: str) -> None:
    assume(not any(_is_code(name) for event in (one, other) for name, _ in event.headers))
    assume((counted(one), topic) != (counted(other), other_topic))
    moved = replace(other, headers=(*other.headers, codes(topic=topic).sign(one).headers[-1]))
    assert codes(topic=other_topic).why_wrong(moved)


SIGNED = codes().sign(Event("sandboxes/a", bytes(range(64)), HEADERS))
COUNTED = [number for number, (name, _) in enumerate(SIGNED.headers) if name != "traceparent"]


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8 % len(content)] ^= 1 << bit % 8
    return bytes(changed)


def flipped_text(content: str, bit: int) -> str:
    # Without the top bit a text of ASCII stays one.
    return flipped(content.encode(), bit - bit % 8 + bit % 7).decode()


BITS = st.integers(min_value=0, max_value=8 * 80)


@given(BITS)
def test_a_flipped_bit_of_the_value_is_refused(bit: int) -> None:
    assert codes().why_wrong(replace(SIGNED, value=flipped(SIGNED.value, bit)))


@given(BITS)
def test_a_flipped_bit_of_the_key_is_refused(bit: int) -> None:
    assert codes().why_wrong(replace(SIGNED, key=flipped_text(SIGNED.key, bit)))


@given(BITS)
def test_a_flipped_bit_of_the_topic_is_refused(bit: int) -> None:
    assert codes(topic=flipped_text(TOPIC, bit)).why_wrong(SIGNED)


@given(st.sampled_from(COUNTED), BITS)
def test_a_flipped_bit_of_a_headers_content_is_refused(number: int, bit: int) -> None:
    headers = list(SIGNED.headers)
    name, content = headers[number]
    headers[number] = (name, flipped(content, bit))
    assert codes().why_wrong(replace(SIGNED, headers=tuple(headers)))


@given(st.sampled_from(COUNTED), BITS)
def test_a_flipped_bit_of_a_headers_name_is_refused(number: int, bit: int) -> None:
    headers = list(SIGNED.headers)
    name, content = headers[number]
    headers[number] = (flipped_text(name, bit), content)
    # The header of the code itself may be written in capitals: the broker keeps names as they are.
    assume(not (name == HEADER and _is_code(headers[number][0])))
    assert codes().why_wrong(replace(SIGNED, headers=tuple(headers)))


@given(st.permutations(COUNTED[:-1]))
def test_headers_in_another_order_are_refused(order: list[int]) -> None:
    assume(order != COUNTED[:-1])
    headers = (*(SIGNED.headers[number] for number in order), SIGNED.headers[-1])
    assert codes().why_wrong(replace(SIGNED, headers=headers))


def test_a_counted_header_that_is_added_repeated_or_removed_is_refused_and_a_trace_is_not() -> None:
    first, *rest = SIGNED.headers
    for headers in (
        (first, *SIGNED.headers),
        tuple(rest),
        (*SIGNED.headers, ("ce_extra", b"1")),
        (*SIGNED.headers, ("BATON-NEW", b"1")),
        (*SIGNED.headers, SIGNED.headers[-1]),
        (*SIGNED.headers, ("Baton-MAC", b"1:old:00")),
        (),
    ):
        assert codes().why_wrong(replace(SIGNED, headers=headers)), headers
    without_trace = tuple((name, content) for name, content in SIGNED.headers if name != "traceparent")
    for headers in (without_trace, (*SIGNED.headers, ("tracestate", b"a=b"), ("x" * 100, b""))):
        assert codes().why_wrong(replace(SIGNED, headers=headers)) == "", headers


@pytest.mark.parametrize(
    "mac",
    ["", "1", "1:old", "1:old:", "2:old:{}", "1:none:{}", "1:new:{}", " 1:old:{}", "1:old:{} ", "1:OLD:{}", "\xff"],
)
def test_a_code_of_another_form_or_key_is_refused(mac: str) -> None:
    code = SIGNED.headers[-1][1].rpartition(b":")[2].decode()
    content = mac.format(code).encode("latin-1")
    assert codes().why_wrong(replace(SIGNED, headers=(*SIGNED.headers[:-1], (HEADER, content))))


def test_hexadecimal_digits_in_capitals_are_refused() -> None:
    name, content = SIGNED.headers[-1]
    form, key_id, code = content.split(b":")
    assert code.upper() != code
    changed = replace(SIGNED, headers=(*SIGNED.headers[:-1], (name, b":".join((form, key_id, code.upper())))))
    assert codes().why_wrong(changed)


@pytest.mark.parametrize("size", [32, 63, 64, 65, 200])
def test_a_key_of_any_length_makes_the_code_of_the_description(size: int) -> None:
    key = bytes(range(size))
    signed = codes("any", keys={"any": key}).sign(Event("a", b"b", HEADERS))
    assert signed.headers[-1][1] == by_the_book("any", key, TOPIC, Event("a", b"b", HEADERS))


def test_a_key_under_another_id_makes_another_code() -> None:
    same = {"one": KEYS["old"], "two": KEYS["old"]}
    name, content = codes("one", keys=same).sign(Event("a", b"b")).headers[-1]
    assert codes("two", keys=same).why_wrong(Event("a", b"b", ((name, content.replace(b"one", b"two")),)))


def test_a_rotation_leaves_no_event_without_a_right_code() -> None:
    ring = KeyRing("old", {"old": KEYS["old"]})
    signer = Codes(lambda: signing, TOPIC)
    checker = Codes(lambda: ring, TOPIC)
    signing = ring
    event = Event("a", b"b", HEADERS)
    before = signer.sign(event)
    ring = KeyRing("old", KEYS)
    signing = KeyRing("new", KEYS)
    after = signer.sign(event)
    assert before != after and signer.key_ids == ("new", "old")
    assert (checker.why_wrong(before), checker.why_wrong(after)) == ("", "")
    ring = KeyRing("new", {"new": KEYS["new"]})
    assert "'old', which is not in the ring" in checker.why_wrong(before)
    assert checker.why_wrong(after) == ""


def test_no_key_is_in_a_reason_or_a_representation() -> None:
    ring = KeyRing("old", KEYS)
    signer = Codes(lambda: ring, TOPIC)
    shown = repr(ring) + repr(signer) + signer.why_wrong(replace(SIGNED, value=b"")) + repr(signer)
    assert "old" in shown
    for key in KEYS.values():
        assert key.hex() not in shown and repr(key)[2:-1] not in shown and not set(shown) - set(string.printable)
