"""A router asks one process of B at a time, and shows the worst of all."""

from __future__ import annotations

from libs.clock import ManualClock
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.pb.baton.telemetry.v1 import telemetry_pb2
from services.router.flows.steering.processes import MISSED_SECONDS, PROCESS_SECONDS, StoreProcesses


def answer(
    process: str, *, breaker: str = "closed", days: float | None = None, trouble: str = ""
) -> pb.GetStatusResponse:
    found = pb.GetStatusResponse(process=process, locks=pb.Locks(breaker=breaker))
    if days is not None or trouble:
        found.certificate.CopyFrom(telemetry_pb2.Certificate(days=days, reload_trouble=trouble))
    return found


def test_a_process_that_does_not_answer_for_a_minute_is_missing() -> None:
    clock = ManualClock()
    processes = StoreProcesses(clock, {Store.B: 2})
    processes.note(Store.B, answer("one"))
    processes.note(Store.B, answer("two"))
    assert processes.missing(Store.B) is None, "a router that has just started has not asked all of them"
    clock.advance(MISSED_SECONDS)
    processes.note(Store.B, answer("one"))
    assert processes.missing(Store.B) == 0
    clock.advance(0.1)
    assert processes.missing(Store.B) == 1
    processes.note(Store.B, answer("three"))
    assert processes.missing(Store.B) == 0
    processes.note(Store.B, answer("four"))
    assert processes.missing(Store.B) == 0, "an address may stand for several"


def test_the_worst_certificate_of_the_processes_is_shown_whichever_answered_last() -> None:
    clock = ManualClock()
    processes = StoreProcesses(clock)
    processes.note(Store.B, answer("one"))
    assert processes.certificate(Store.B) is None
    processes.note(Store.B, answer("two", days=5.0))
    processes.note(Store.B, answer("three", days=300.0, trouble="tls_key: x"))
    assert processes.certificate(Store.B) == telemetry_pb2.Certificate(days=5.0, reload_trouble="tls_key: x")
    clock.advance(PROCESS_SECONDS + 0.1)
    processes.note(Store.B, answer("three", days=300.0))
    assert processes.certificate(Store.B) == telemetry_pb2.Certificate(days=300.0)


def test_one_process_without_its_lock_server_is_enough() -> None:
    processes = StoreProcesses(ManualClock())
    processes.note(Store.B, answer("one", breaker="open"))
    assert processes.locks_away(Store.B)
    processes.note(Store.B, answer("two"))
    assert processes.locks_away(Store.B)
    processes.note(Store.B, answer("one"))
    assert not processes.locks_away(Store.B)
