"""Update masks: fields that the mask does not name stay, fields that it names get the request's value."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import InvalidField
from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.sandboxes.masks import EVERYTHING, FIELDS, PATHS, SPEC_FIELDS, apply, select
from libs.sandboxes.unknown import split, take_unknown
from tests.unit.sandboxes import a_sandbox

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
maps = st.dictionaries(texts, texts, max_size=3)
specs = st.builds(
    SandboxSpec,
    image=texts,
    command=st.lists(texts, max_size=3),
    env=maps,
    cpu_millis=st.integers(0, 1000),
    memory_mib=st.integers(0, 1000),
    timeout=st.none() | st.builds(lambda seconds: {"seconds": seconds}, st.integers(0, 99)),
)


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + _varint(value >> 7) if value > 0x7F else bytes([value])


def _field(number: int, kind: int, content: bytes) -> bytes:
    return _varint(number << 3 | kind) + content


newer_fields = st.dictionaries(
    st.integers(100, 103),
    st.one_of(
        st.integers(0, 2**63).map(lambda value: (0, _varint(value))),
        st.binary(min_size=8, max_size=8).map(lambda data: (1, data)),
        st.binary(max_size=200).map(lambda data: (2, _varint(len(data)) + data)),
        st.binary(min_size=4, max_size=4).map(lambda data: (5, data)),
    ),
    max_size=3,
).map(lambda fields: {number: _field(number, *content) for number, content in fields.items()})


@st.composite
def sandboxes(draw: st.DrawFn) -> Sandbox:
    """Any, with fields of a newer contract in it and in its spec. Not all are valid: masks do not look."""
    sandbox = Sandbox(
        name="sandboxes/one",
        state=draw(st.sampled_from(Sandbox.State.values())),
        labels=draw(maps),
        annotations=draw(maps),
        account="ann",
    )
    if draw(st.booleans()):
        sandbox.spec.CopyFrom(draw(specs))
        sandbox.spec.MergeFromString(b"".join(draw(newer_fields).values()))
    sandbox.MergeFromString(b"".join(draw(newer_fields).values()))
    return sandbox


def known(sandbox: Sandbox) -> dict[str, Any]:
    """Fields by path; unset fields have their default."""
    values: dict[str, Any] = {name: getattr(sandbox, name) for name in FIELDS}
    values |= {f"spec.{name}": getattr(sandbox.spec, name) for name in SPEC_FIELDS}
    values = {path: dict(value) if hasattr(value, "items") else value for path, value in values.items()}
    values["spec.command"] = list(sandbox.spec.command)
    return values


def newer(message: Sandbox | SandboxSpec) -> dict[int, bytes]:
    fields = split(message.SerializeToString(deterministic=True))
    return {number: raw for number, raw in fields if number >= 100}


def updated(paths: list[str], target: Sandbox, source: Sandbox) -> Sandbox:
    result = Sandbox()
    result.CopyFrom(target)
    apply(select(paths, source), result, source)
    return result


@given(st.lists(st.sampled_from(PATHS), min_size=1), sandboxes(), sandboxes())
def test_a_mask_changes_what_it_names_and_nothing_else(paths: list[str], target: Sandbox, source: Sandbox) -> None:
    result = updated(paths, target, source)
    named = {path for path in known(target) if path in paths or ("spec" in paths and path.startswith("spec."))}
    for path, value in known(result).items():
        assert value == known(source if path in named else target)[path], path
    assert (result.name, result.account) == (target.name, target.account)
    assert newer(result) == newer(target)
    assert newer(result.spec) == newer(target.spec) | (newer(source.spec) if "spec" in paths else {})


@given(sandboxes(), sandboxes())
def test_the_whole_mask_takes_everything_and_keeps_newer_fields(target: Sandbox, source: Sandbox) -> None:
    result = updated([EVERYTHING], target, source)
    assert known(result) == known(source)
    assert newer(result) == newer(target) | newer(source)
    assert newer(result.spec) == newer(target.spec) | newer(source.spec)


@given(sandboxes(), sandboxes())
def test_no_mask_takes_what_is_set_and_clears_nothing(target: Sandbox, source: Sandbox) -> None:
    result = updated([], target, source)
    empty = known(Sandbox())
    for path, value in known(source).items():
        # A timeout of nothing is set all the same.
        is_set = source.spec.HasField("timeout") if path == "spec.timeout" else value != empty[path]
        assert known(result)[path] == (value if is_set else known(target)[path]), path
    assert newer(result) == newer(target) | newer(source)
    assert newer(result.spec) == newer(target.spec) | newer(source.spec)


@given(st.lists(st.sampled_from([*PATHS])) | st.just([EVERYTHING]), sandboxes(), sandboxes())
def test_the_same_update_twice_is_the_same_as_once(paths: list[str], target: Sandbox, source: Sandbox) -> None:
    once = updated(paths, target, source)
    assert updated(paths, once, source).SerializeToString(deterministic=True) == once.SerializeToString(
        deterministic=True
    )


@given(sandboxes())
def test_reading_and_giving_back_changes_nothing(sandbox: Sandbox) -> None:
    for paths in ([], [EVERYTHING], [*PATHS]):
        assert known(updated(paths, sandbox, sandbox)) == known(sandbox)
        assert newer(updated(paths, sandbox, sandbox)) == newer(sandbox)


def test_a_group_of_a_newer_contract_is_replaced_as_a_whole() -> None:
    start, end = _varint(100 << 3 | 3), _varint(100 << 3 | 4)
    inner = _varint(1 << 3 | 3) + _varint(2 << 3) + b"\x07" + _varint(1 << 3 | 4)
    target, source = Sandbox(name="a"), Sandbox(name="b")
    target.MergeFromString(start + inner + end)
    source.MergeFromString(start + _varint(2 << 3) + b"\x08" + end)
    take_unknown(target, source)
    assert newer(target) == newer(source) == {100: start + _varint(2 << 3) + b"\x08" + end}
    assert target.name == "a"


@pytest.mark.parametrize(
    ("paths", "value", "expected"),
    [
        (["label"], "'label'", "the paths are state, labels, annotations, spec, spec.image"),
        (["labels.team"], "'labels.team'", "the paths are"),
        ([""], "''", 'or "*"'),
        (["name"], "'name'", "keeps its name"),
        (["account"], "'account'", "keeps its account"),
        (["etag"], "'etag'", "output only"),
        (["state", "update_time"], "'update_time'", "output only"),
        (["*", "state"], "'*,state'", "stands alone"),
        (["state"] * 65, "65 paths", "at most 64"),
    ],
)
def test_a_mask_that_names_something_else_is_refused(paths: list[str], value: str, expected: str) -> None:
    with pytest.raises(InvalidField) as caught:
        select(paths, a_sandbox())
    assert caught.value.field == "update_mask"
    assert value in caught.value.message
    assert expected in caught.value.expected
