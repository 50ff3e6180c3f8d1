"""The principal under which a store serves the requests of its direct callers: their subject, or `anonymous`.

The routers report the migration's choice with each query of the status, about twice a second. A process keeps it in
memory and begins with `anonymous`. The choice is no condition of a write: a request is looked up under both principals
in any case (`libs.ownership.rules.done`). So a process that has not learned of a change yet doubles no request.
"""

from __future__ import annotations

import logging

from libs.clock import Clock
from libs.ownership.model import ANONYMOUS

KEPT_SECONDS = 10.0
"""An older setting counts only if no router has reported the newer one for this long. A router that does not reach the
control store reports an older one; a control store that was restored has one."""

log = logging.getLogger(__name__)


class ServedAs:
    def __init__(self, clock: Clock) -> None:
        self.subjects = False
        self._clock = clock
        self._generation = 0
        self._reported_at = 0.0

    def __repr__(self) -> str:
        return f"<ServedAs {self} generation={self._generation}>"

    def __str__(self) -> str:
        return "subjects" if self.subjects else ANONYMOUS

    def learn(self, *, subjects: bool, generation: int) -> None:
        now = self._clock.monotonic()
        if generation < self._generation and now - self._reported_at <= KEPT_SECONDS:
            return
        self._generation, self._reported_at = generation, now
        if subjects != self.subjects:
            self.subjects = subjects
            log.info("requests of direct callers are served under %s", self)
