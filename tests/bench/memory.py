"""Memory of each process after its start and after load, against the memory of a bare proxy."""

from __future__ import annotations

from tests.bench.calls import GET, UPDATE, get_request, path_of, run_calls, update_request
from tests.bench.measure import Figure, Target
from tests.bench.site import CLIENT, PROXY, SEED_RECORDS, Site

TARGET = Target(150.0)
IN_FLIGHT = 64


async def measure(site: Site) -> list[Figure]:
    """Measure memory, including the effect of the benches that ran before."""
    world = await site.world()
    count = site.pick(4000, 1500)
    for address in (site.proxy_address, world.routers[0]):
        channel = await site.channel(address)
        for method, request in ((GET, get_request), (UPDATE, update_request)):
            requests = [request(number % SEED_RECORDS) for number in range(count)]
            await run_calls(channel.multi_callable(path_of(method)), requests, IN_FLIGHT)
    figures = []
    for when, found in (("idle", site.idle), ("after load", site.memory())):
        for process in (name for name in found if name not in (CLIENT, PROXY)):
            mine, proxy = found[process], found[PROXY]
            target = TARGET if process.startswith("router") else None
            figures += [
                Figure(f"{process}, {when}: RSS", "MB", mine.rss, proxy.rss, PROXY, target),
                Figure(f"{process}, {when}: PSS", "MB", mine.pss, proxy.pss, PROXY),
            ]
    return figures
