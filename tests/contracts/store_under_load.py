"""A process that writes to a store until it is killed, and tells each acknowledged write: key, request, revision.

python -m tests.contracts.store_under_load ADAPTER FILE
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from libs.clock import SystemClock
from libs.store.limits import OutboxLimits
from tests.contracts.store_adapters import ADAPTERS, Place, open_adapter, own, put

WRITERS = 8


async def _run(name: str, path: Path) -> None:
    adapter = next(adapter for adapter in ADAPTERS if adapter.name == name)
    keys = [f"sandboxes/{number}" for number in range(5)]
    async with open_adapter(adapter, Place(path, "", SystemClock(), OutboxLimits())) as store:
        await own(store, keys)

        async def write_on(writer: int) -> None:
            for number in itertools.count():
                key, request = keys[(writer + number) % len(keys)], f"r{writer}-{number}"
                outcome = await put(store, key, request, request)
                sys.stdout.write(f"{key} {request} {outcome.version.revision}\n")
                sys.stdout.flush()

        await asyncio.gather(*(write_on(writer) for writer in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], Path(sys.argv[2])))
