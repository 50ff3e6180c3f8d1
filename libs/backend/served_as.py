"""The principal under which a store serves the requests of its direct callers: their subject, or `anonymous`.

The routers report the migration's choice with each query of the status, about twice a second. A process keeps it in
memory and begins with `anonymous`. The choice is no condition of a write: a request is looked up under both principals
in any case (`libs.ownership.rules.done`). So a process that has not learned of a change yet doubles no request.
"""

from __future__ import annotations

import logging

from libs.ownership.model import ANONYMOUS

log = logging.getLogger(__name__)


class ServedAs:
    def __init__(self) -> None:
        self.subjects = False

    def __repr__(self) -> str:
        return f"<ServedAs {self}>"

    def __str__(self) -> str:
        return "subjects" if self.subjects else ANONYMOUS

    def learn(self, *, subjects: bool) -> None:
        if subjects != self.subjects:
            self.subjects = subjects
            log.info("requests of direct callers are served under %s", self)
