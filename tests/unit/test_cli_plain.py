"""`baton status --plain`: one line of key=value."""

from __future__ import annotations

import shlex

from libs.ownership.model import Store
from libs.ownership.wire import STORE_NUMBERS
from libs.pb.baton.control.v1 import control_pb2 as pb
from services.router.cli.plain import plain_line
from services.router.cli.views import status_view


def parsed(status: pb.GetStatusResponse, place: str = "") -> dict[str, str]:
    line = plain_line(status_view(status), place)
    assert "\n" not in line
    return dict(word.split("=", 1) for word in shlex.split(line))


def of_stores() -> pb.GetStatusResponse:
    status = pb.GetStatusResponse(buckets=1024)
    status.setting.phase = pb.PHASE_DUAL_WRITE
    status.setting.canary_permille = 125
    for store in Store:
        status.stores.add(store=STORE_NUMBERS[store])
    return status


def test_a_value_that_is_not_known_is_no_number() -> None:
    found = parsed(of_stores())
    assert (found["phase"], found["canary"], found["hold"]) == ("DUAL_WRITE", "12.5%", "no")
    assert found["buckets_at_b"] == found["a.lag_seconds"] == found["b.p99_ms"] == "?"
    assert found["a.state"] == "away"
    assert "job" not in found


def test_an_alert_and_a_place_with_spaces_are_one_value_each() -> None:
    status = of_stores()
    status.alerts.append('store B says "no"\nand more')
    found = parsed(status, "staging (127.0.0.1:7700)")
    assert found["alerts"] == "1"
    assert found["alert"].startswith('store B says "no"')
    assert found["at"] == "staging (127.0.0.1:7700)"


def test_a_running_job_shows_its_progress() -> None:
    status = of_stores()
    status.jobs.add(id="backfill-7", state=pb.Job.STATE_RUNNING, done=45, total=90, rate=1500.0)
    found = parsed(status)
    assert (found["job"], found["job.done"], found["job.rate"]) == ("backfill-7", "50.0%", "1500")
