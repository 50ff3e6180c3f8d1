"""The circuit breaker that spares callers the wait for a server that is away."""

from libs.clock import ManualClock
from libs.locks.breaker import Breaker, State


def test_a_breaker_lets_one_probe_through_after_a_pause() -> None:
    clock = ManualClock()
    breaker = Breaker(1.0, clock)
    assert breaker.admits
    assert not breaker.begin_probe()
    breaker.failed()
    assert not breaker.admits
    clock.advance(0.99)
    assert not breaker.begin_probe()
    clock.advance(0.01)
    assert breaker.begin_probe()
    assert breaker.state is State.PROBING
    assert not breaker.begin_probe()
    assert not breaker.admits
    breaker.failed()
    assert not breaker.begin_probe()
    clock.advance(1.0)
    assert breaker.begin_probe()
    breaker.succeeded()
    assert breaker.admits
    assert breaker.opened == 1
