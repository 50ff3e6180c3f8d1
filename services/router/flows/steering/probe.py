"""Synthetic calls: they give gates enough samples when clients make few calls.

A probe is a client of this router's own public listener, so its calls are planned, forwarded, measured, compared and
checked by the ledger like those of any client. It reads existing records by name. It writes on names of its own, with a
random part, by the method that the contract marks with `probe_if`: such a call commits a change in the owner's row
(version, event, served request) and leaves no record, so no list, watch or quota shows it. Each probe leaves `NAMES`
rows of a few bytes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from itertools import count
from uuid import uuid4

import grpc

from libs.clock import Clock
from libs.contract.descriptors import Contract, Method
from libs.errors import BatonError, InvalidField
from libs.ownership.model import Store
from libs.pb.baton.replication.v1 import replication_pb2 as rpb
from libs.rpc import metadata
from libs.rpc.channel import Channel, open_channel
from libs.tls.process import ClientTls
from services.router.flows.stores import StoreClient, Stores

MAX_SECONDS = 3600.0
MAX_RATE = 200.0
NAMES = 16
"""Names per probe. They spread its writes over as many buckets."""
READ_NAMES = 500
"""Records of each store to read in turn."""
CALL_SECONDS = 5.0
WORKERS = 8
TELL_SECONDS = 1.0
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class ProbeUnderWay(BatonError):
    """Another probe is running at this router: wait for its end."""

    code = "FAILED_PRECONDITION"
    reason = "PROBE_UNDER_WAY"


class NoProbe(BatonError):
    """The contract has no method for a probe."""

    code = "FAILED_PRECONDITION"
    reason = "NO_PROBE"


@dataclass(frozen=True, slots=True)
class ProbePlan:
    seconds: float
    rate: float
    """Calls per second."""
    writes: bool

    def check(self) -> None:
        """Raises InvalidField."""
        if not 1 <= self.seconds <= MAX_SECONDS:
            raise InvalidField("seconds", self.seconds, f"1 to {MAX_SECONDS:.0f} seconds")
        if not 1 <= self.rate <= MAX_RATE:
            raise InvalidField("rate", self.rate, f"1 to {MAX_RATE:.0f} calls per second")


@dataclass(slots=True)
class ProbeCounts:
    reads: int = 0
    writes: int = 0
    faults: int = 0
    answered: dict[str, int] = field(default_factory=lambda: {store.value: 0 for store in Store})
    trouble: str = ""
    seconds: float = 0.0


Own = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class OwnCalls:
    """How the router's own listener accepts its calls."""

    metadata: Own = ()
    tls: Callable[[], ClientTls | None] = lambda: None


class Probe:
    """The prober of one router. It runs one probe at a time."""

    def __init__(
        self, contract: Contract, stores: Stores, address: Callable[[], str], clock: Clock, own: OwnCalls | None = None
    ) -> None:
        """`address`: of the router's public listener. `own`: how it accepts these calls."""
        methods = [method for method in contract.methods.values() if method.key is not None]
        self._reads = [method for method in methods if method.is_read]
        self._writes = [method for method in methods if method.probe_if]
        named = [method.key.template for method in methods if method.key and method.key.template.replace("{}", "")]
        self._template = named[0] if named else "{}"
        self._stores = stores
        self._address = address
        self.own = own or OwnCalls()
        self._clock = clock
        self._busy = False

    def check(self, plan: ProbePlan) -> None:
        """Raises InvalidField, NoProbe, ProbeUnderWay."""
        plan.check()
        if not self._reads or (plan.writes and not self._writes):
            raise NoProbe()
        if self._busy:
            raise ProbeUnderWay()

    async def run(self, plan: ProbePlan) -> AsyncGenerator[ProbeCounts, None]:
        """Run a probe; yield its counts every second and at the end. Raises as `check`."""
        self.check(plan)
        self._busy = True
        counts, began = ProbeCounts(), self._clock.monotonic()
        try:
            async with open_channel(self._address(), self.own.tls()) as channel:
                run = _Run(self, plan, channel, counts, await self._names())
                workers = [asyncio.create_task(run.work(began, self._clock)) for _ in range(WORKERS)]
                try:
                    left = set(workers)
                    while left:
                        _, left = await asyncio.wait(left, timeout=TELL_SECONDS)
                        counts.seconds = self._clock.monotonic() - began
                        yield replace(counts, answered=dict(counts.answered))
                    for worker in workers:
                        worker.result()
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
        finally:
            self._busy = False

    async def _names(self) -> list[str]:
        """Return names of existing records from any store that answers."""
        found: dict[str, None] = {}
        for client in self._stores.values():
            found |= dict.fromkeys(await _names_at(client))
        return list(found)

    def own_names(self) -> list[str]:
        run = secrets.token_hex(8)
        holes = self._template.count("{}")
        return [self._template.format(*["baton-probe"] * (holes - 1), f"baton-probe-{run}-{n}") for n in range(NAMES)]

    def read(self, number: int) -> Method:
        return self._reads[number % len(self._reads)]

    def write(self, number: int) -> Method:
        return self._writes[number % len(self._writes)]


class _Run:
    def __init__(self, probe: Probe, plan: ProbePlan, channel: Channel, counts: ProbeCounts, names: list[str]) -> None:
        self._probe = probe
        self._plan = plan
        self._channel = channel
        self._counts = counts
        self._own = probe.own_names()
        self._names = names or self._own
        self._numbers = count()

    async def work(self, began: float, clock: Clock) -> None:
        """Make calls at the given rate until the time is over."""
        while True:
            number = next(self._numbers)
            at = number / self._plan.rate
            if at > self._plan.seconds:
                return
            await asyncio.sleep(max(0.0, began + at - clock.monotonic()))
            if clock.monotonic() - began > self._plan.seconds:
                return
            await self._call(number)

    async def _call(self, number: int) -> None:
        writes = self._plan.writes and number % 2 == 1
        method = self._probe.write(number) if writes else self._probe.read(number)
        names = self._own if writes else self._names
        request = method.request_class()
        assert method.key is not None, "probes call methods with a key"
        _fill(method, request, names[(number // 2) % len(names)])
        if writes:
            setattr(request, method.probe_if, True)
            setattr(request, method.request_id, str(uuid4()))
            self._counts.writes += 1
        else:
            self._counts.reads += 1
        call = self._channel.multi_callable(method.path)(
            request.SerializeToString(),
            timeout=CALL_SECONDS,
            metadata=(*self._probe.own.metadata, (metadata.EXPLAIN, "1")),
        )
        try:
            await call
        except grpc.aio.AioRpcError as error:
            if error.code() in _FAULTS:
                self._counts.faults += 1
                self._counts.trouble = f"{error.code().name}: {error.details()}"
        store = str(dict(await call.trailing_metadata() or ()).get(metadata.STORE, ""))
        if store in self._counts.answered:
            self._counts.answered[store] += 1


def _fill(method: Method, request: object, name: str) -> None:
    """Set the record's name. Its key may be one field of the request or several."""
    key = method.key
    assert key is not None, "probes call methods with a key"
    values = [name] if key.template == "{}" else _parts(key.template, name)
    key.put(request, *values)  # type: ignore[arg-type]


def _parts(template: str, name: str) -> list[str]:
    """Split a name by its template: "shelf/{}/{}" and "shelf/r/7" give r and 7."""
    values = []
    literals = template.split("{}")
    rest = name.removeprefix(literals[0])
    for literal in literals[1:-1]:
        value, _, rest = rest.partition(literal)
        values.append(value)
    return [*values, rest.removesuffix(literals[-1])]


async def _names_at(client: StoreClient) -> list[str]:
    try:
        request = rpb.ExportRecordsRequest(limit=READ_NAMES, keys_only=True)
        answer = await client.ask(client.replication.ExportRecords, request, CALL_SECONDS)
    except BatonError:
        return []
    return [record.key for record in answer.records]
