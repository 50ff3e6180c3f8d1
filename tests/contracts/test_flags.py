"""The contract of flag sources, run against each adapter; and the limits of flagd files and foreign providers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import FeatureProvider
from openfeature.provider.no_op_provider import NoOpProvider

from libs.flags.flagd import MAX_FILE_BYTES, flagd_source
from libs.flags.openfeature import OpenFeatureSource, UnfitProvider, load_factory
from libs.flags.port import FlagReading, FlagsUnavailable
from tests.contracts.flag_adapters import (
    SHARED,
    Adapter,
    ChangingProvider,
    FlagdAdapter,
    MemoryAdapter,
    ProviderAdapter,
    flagd_text,
)

NAMES = ("x.on", "x.off", "x.unset")
BOUND_SECONDS = 10.0


@pytest.fixture(params=["memory", "flagd", "provider"])
async def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Adapter]:
    made: dict[str, Callable[[], Adapter]] = {
        "memory": MemoryAdapter,
        "flagd": lambda: FlagdAdapter(tmp_path / "flags.json"),
        "provider": ProviderAdapter,
    }
    adapter = made[request.param]()
    yield adapter
    adapter.source.close()


async def test_a_flag_is_true_or_false_or_unset(adapter: Adapter) -> None:
    adapter.put({"x.on": True, "x.off": False, "other": True})
    assert adapter.source.evaluate(NAMES) == {
        "x.on": FlagReading(True),
        "x.off": FlagReading(False),
        "x.unset": FlagReading(None),
    }


async def test_a_flag_that_is_taken_away_is_unset(adapter: Adapter) -> None:
    adapter.put({"x.on": True})
    assert adapter.source.evaluate(["x.on"])["x.on"].value is True
    adapter.put({})
    assert adapter.source.evaluate(["x.on"])["x.on"] == FlagReading(None)


async def test_each_look_sees_what_was_put_last(adapter: Adapter) -> None:
    for value in (True, False) * 20:
        adapter.put({"x.on": value})
        assert adapter.source.evaluate(["x.on"])["x.on"].value is value


async def test_a_watch_ends_after_its_time(adapter: Adapter) -> None:
    adapter.source.evaluate(NAMES)
    async with asyncio.timeout(BOUND_SECONDS):
        for _ in range(3):
            await adapter.source.watch(0.01)


async def test_a_closed_source_says_nothing_and_may_be_closed_again(adapter: Adapter) -> None:
    adapter.source.evaluate(NAMES)
    for _ in range(2):
        adapter.source.close()
    with pytest.raises(FlagsUnavailable):
        adapter.source.evaluate(NAMES)


@pytest.mark.parametrize("kind", [MemoryAdapter, ProviderAdapter])
async def test_a_provider_that_tells_of_a_change_ends_the_watch(kind: Callable[[], Adapter]) -> None:
    adapter = kind()
    adapter.source.evaluate(NAMES)
    await adapter.source.watch(0.2)
    waiting = asyncio.create_task(adapter.source.watch(3600))
    await asyncio.sleep(0)
    adapter.put({"x.on": True})
    await asyncio.wait_for(waiting, BOUND_SECONDS)
    adapter.source.close()


async def test_a_change_between_two_watches_is_not_missed() -> None:
    adapter = ProviderAdapter()
    adapter.source.evaluate(NAMES)
    await adapter.source.watch(0.2)
    adapter.put({"x.on": True})
    await asyncio.wait_for(adapter.source.watch(3600), BOUND_SECONDS)
    adapter.source.close()


async def test_two_sources_do_not_meet() -> None:
    one, other = MemoryAdapter(), ProviderAdapter()
    one.put({"x.on": True})
    other.put({"x.on": False})
    assert one.source.evaluate(["x.on"])["x.on"].value is True
    assert other.source.evaluate(["x.on"])["x.on"].value is False
    one.source.close()
    assert other.source.evaluate(["x.on"])["x.on"].value is False
    other.source.close()


@pytest.mark.parametrize("value", ["yes", 1, 0, 0.5, {"a": 1}, [True]])
@pytest.mark.parametrize("kind", ["flagd", "provider"])
async def test_a_value_of_a_wrong_type_is_trouble_of_that_flag_alone(kind: str, value: Any, tmp_path: Path) -> None:
    adapter: Adapter = FlagdAdapter(tmp_path / "flags.json") if kind == "flagd" else ProviderAdapter()
    adapter.put({"x.on": True, "x.off": value})
    seen = adapter.source.evaluate(["x.on", "x.off"])
    assert seen["x.on"] == FlagReading(True)
    assert "TYPE_MISMATCH" in seen["x.off"].trouble
    adapter.source.close()


class OddProvider(ChangingProvider):
    """Fails on command."""

    def __init__(self, *, init: Exception | None = None, resolve: Exception | FlagResolutionDetails[bool]) -> None:
        super().__init__({})
        self.init = init
        self.resolve = resolve

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        if self.init is not None:
            raise self.init

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        if isinstance(self.resolve, Exception):
            raise self.resolve
        return self.resolve


TRUE = FlagResolutionDetails(True, reason=Reason.STATIC)


def look(provider: FeatureProvider) -> FlagReading:
    source = OpenFeatureSource("odd", lambda: provider)
    try:
        return source.evaluate(["x.on"])["x.on"]
    finally:
        source.close()


async def test_a_default_is_never_taken_for_a_value() -> None:
    assert look(NoOpProvider()) == FlagReading(None)


@pytest.mark.parametrize(
    "resolve",
    [
        RuntimeError("down"),
        FlagResolutionDetails(True, error_code=ErrorCode.GENERAL, error_message="down"),
        FlagResolutionDetails(True, error_code=ErrorCode.PARSE_ERROR),
    ],
)
async def test_a_provider_that_fails_is_trouble(resolve: Exception | FlagResolutionDetails[bool]) -> None:
    assert look(OddProvider(resolve=resolve)).trouble


async def test_a_disabled_flag_is_unset() -> None:
    assert look(OddProvider(resolve=FlagResolutionDetails(True, reason=Reason.DISABLED))) == FlagReading(None)


async def test_a_provider_that_cannot_start_is_made_anew_until_it_can() -> None:
    made = [OddProvider(init=OSError("no route"), resolve=TRUE), OddProvider(resolve=TRUE)]
    source = OpenFeatureSource("late", lambda: made.pop(0))
    with pytest.raises(FlagsUnavailable, match="no route"):
        source.evaluate(["x.on"])
    assert source.evaluate(["x.on"])["x.on"].value is True
    assert source.evaluate(["x.on"])["x.on"].value is True
    assert made == []
    source.close()


async def test_a_provider_that_says_that_it_is_away_says_nothing_else() -> None:
    provider = OddProvider(resolve=TRUE)
    source = OpenFeatureSource("away", lambda: provider)
    assert source.evaluate(["x.on"])["x.on"].value is True
    provider.emit_provider_error(ProviderEventDetails(message="lost"))
    with pytest.raises(FlagsUnavailable, match="ERROR"):
        source.evaluate(["x.on"])
    provider.emit_provider_ready(ProviderEventDetails())
    assert source.evaluate(["x.on"])["x.on"].value is True
    source.close()


@pytest.mark.parametrize("place", ["nowhere.at.all:thing", "json:no_such", "libs.flags.port:__doc__", "json"])
def test_what_makes_no_provider_is_refused_by_name(place: str) -> None:
    with pytest.raises(UnfitProvider, match=place):
        load_factory(place)


def test_a_factory_is_found_by_its_name() -> None:
    assert load_factory("tests.contracts.flag_adapters:make_shared")() is SHARED


GOOD = flagd_text({"x.on": True})

BROKEN = {
    "empty": "",
    "half": GOOD[: len(GOOD) // 2],
    "not JSON": "flags: {}",
    "a list": "[]",
    "no flags": "{}",
    "flags of a wrong kind": '{"flags": []}',
    "a flag of a wrong kind": '{"flags": {"x.on": true}}',
    "no state": '{"flags": {"x.on": {"variants": {"a": true}}}}',
    "a wrong state": '{"flags": {"x.on": {"state": "ON", "variants": {"a": true}}}}',
    "no variants": '{"flags": {"x.on": {"state": "ENABLED"}}}',
    "a wrong key": '{"flags": {"x.on": {"state": "ENABLED", "variants": {"a": true}, "defaultvariant": "a"}}}',
    "a reference that cannot be put in": '{"flags": {"x": {"$ref": "r"}}, "$evaluators": {"r": "\u00e9"}}',
    "deep": "[" * 100_000,
    "not UTF-8": "\udcff",
    "large": GOOD + " " * MAX_FILE_BYTES,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
async def test_a_broken_file_says_nothing_and_the_next_good_one_is_taken(text: str, tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(GOOD)
    source = flagd_source(path)
    assert source.evaluate(["x.on"])["x.on"].value is True
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FlagsUnavailable, match=r"flags\.json"):
        source.evaluate(["x.on"])
    path.write_text(flagd_text({"x.on": False}))
    assert source.evaluate(["x.on"])["x.on"].value is False
    path.unlink()
    with pytest.raises(FlagsUnavailable, match="cannot be read"):
        source.evaluate(["x.on"])
    path.write_text(flagd_text({"x.on": False}))
    assert source.evaluate(["x.on"])["x.on"].value is False
    source.close()


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
async def test_a_file_that_is_broken_from_the_start_is_reported_at_every_look(text: str, tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    source = flagd_source(path)
    for _ in range(2):
        with pytest.raises(FlagsUnavailable, match=r"flags\.json"):
            source.evaluate(["x.on"])
    source.close()


RULES: dict[str, tuple[dict[str, Any], FlagReading]] = {
    "disabled": ({"state": "DISABLED", "defaultVariant": "on"}, FlagReading(None)),
    "without a default": ({"state": "ENABLED"}, FlagReading(None)),
    "a null default": ({"state": "ENABLED", "defaultVariant": None}, FlagReading(None)),
    "a rule": ({"state": "ENABLED", "defaultVariant": "off", "targeting": {"if": [True, "on"]}}, FlagReading(True)),
    "a rule that leaves it": (
        {"state": "ENABLED", "defaultVariant": "off", "targeting": {"if": [False, "on"]}},
        FlagReading(False),
    ),
}


@pytest.mark.parametrize(("flag", "seen"), RULES.values(), ids=RULES)
async def test_a_flagd_flag_means_what_flagd_says(flag: dict[str, Any], seen: FlagReading, tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"x.on": {"variants": {"on": True, "off": False}, **flag}}}))
    source = flagd_source(path)
    assert source.evaluate(["x.on"])["x.on"] == seen
    source.close()


@pytest.mark.parametrize("flag", [{"defaultVariant": "no such"}, {"targeting": {"no such operator": []}}])
async def test_a_flagd_flag_that_cannot_be_evaluated_is_trouble(flag: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"x.on": {"state": "ENABLED", "variants": {"on": True}, **flag}}}))
    source = flagd_source(path)
    assert source.evaluate(["x.on"])["x.on"].trouble
    source.close()
