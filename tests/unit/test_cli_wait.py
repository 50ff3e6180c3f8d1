"""`--wait` after a change that moves records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.cli import setting_change
from services.router.cli.failure import CommandFailed, Exit
from services.router.cli.options import Moving, Output
from services.router.cli.setting_change import wait_until_settled


class Router:
    def __init__(self, *at_b: int, last_is_settled: bool = True) -> None:
        self._left = [
            pb.GetStatusResponse(
                buckets=1024, buckets_to_b=51, buckets_at_b=count, settled=last_is_settled and index == len(at_b) - 1
            )
            for index, count in enumerate(at_b)
        ]

    def call(self, method: str, request: object) -> Any:
        assert method == "GetStatus"
        return self._left.pop(0) if len(self._left) > 1 else self._left[0]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting_change, "_POLL_SECONDS", 0.0)


def waited(router: Any, options: Moving) -> None:
    wait_until_settled(router, options)


@pytest.mark.parametrize(
    ("output", "lines"), [(Output.TABLE, ["0 of 1024 buckets at B, 51 wanted", "20 of 1024"]), (Output.JSON, [])]
)
def test_a_move_is_shown_until_every_bucket_is_in_its_place(
    output: Output, lines: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    waited(Router(0, 0, 20, 51), Moving(output=output, wait=True))
    said = capsys.readouterr()
    assert said.out == ""
    found = said.err.splitlines()
    assert len(found) == len(lines), "a line that is not new is not repeated"
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


def test_a_move_that_takes_longer_goes_on_without_the_command() -> None:
    with pytest.raises(CommandFailed, match="it goes on") as caught:
        waited(Router(0, last_is_settled=False), Moving(wait=True, timeout=0.001))
    assert caught.value.code is Exit.STILL_RUNNING
