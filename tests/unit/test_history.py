"""The files in which clients record their calls."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from libs.proving.history.history import Answer, Call, HistoryError, HistoryWriter, Outcome, read_history

KEY = "sandboxes/one"
OK, UNKNOWN = Outcome.OK, Outcome.UNKNOWN


def test_a_history_comes_back_from_its_files_as_it_was_written(tmp_path: Path) -> None:
    ticks = itertools.count()
    with HistoryWriter(tmp_path / "1", 1, lambda: next(ticks)) as one, HistoryWriter(tmp_path / "2", 2) as two:
        one.label = "OFF"
        written = one.begin("create", KEY, request_id="r", value="a")
        one.label = ""
        read = one.begin("get", KEY)
        one.finish(read, Answer(OK, value="a", revision=(0, 1), stale=True))
        one.finish(written, Answer(OK, revision=(0, 1)))
        two.begin("delete", KEY, request_id="s")
    first, second, third = sorted(read_history([tmp_path / "1", tmp_path / "2"]), key=lambda c: (c.client, c.number))
    assert first == Call(1, 0, "create", KEY, "r", 0, 3, OK, "", "a", (0, 1), False, "OFF")
    assert second == Call(1, 1, "get", KEY, None, 1, 2, OK, "", "a", (0, 1), True, "")
    assert (third.outcome, third.end, third.request_id) == (UNKNOWN, None, "s")


def test_a_torn_answer_makes_the_call_unknown_at_every_place_it_may_tear(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    with HistoryWriter(path, 1) as writer:
        writer.finish(writer.begin("update", KEY, request_id="r", value="ä"), Answer(OK, revision=(0, 2)))
    whole = path.read_bytes()
    intent = whole.index(b"\n") + 1
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        outcomes = [each.outcome for each in read_history([path])]
        assert outcomes == ([UNKNOWN] if size >= intent else [])
    path.write_bytes(whole)
    assert [each.outcome for each in read_history([path])] == [OK]


def test_a_damaged_line_names_its_file_and_place(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    path.write_text('{"client":1,\n{}\n')
    with pytest.raises(HistoryError, match="damaged:1"):
        read_history([path])
    path.write_text('{"client":1,"number":0,"end":1,"outcome":"ok"}\n')
    with pytest.raises(HistoryError, match="one intent, then one answer"):
        read_history([path])


def test_a_client_never_writes_into_the_file_of_another_run(tmp_path: Path) -> None:
    HistoryWriter(tmp_path / "1", 1).close()
    with pytest.raises(FileExistsError):
        HistoryWriter(tmp_path / "1", 1)
    with HistoryWriter(tmp_path / "2", 1) as writer, pytest.raises(HistoryError, match="method='Get'"):
        writer.begin("Get", KEY)
