"""A contract's calls at one store: parsed, decided by the owner in the record's row, answered in the contract's bytes.

The internal listener answers for this store alone: calls on records of the other store end in NOT_OWNER. The public
listener serves clients directly. It passes calls that this store cannot answer as owner on to the router, and every
list, since half of the records may be elsewhere, and every watch, which the router continues when this store ends. So a
client of an old endpoint gets correct answers while records move.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from uuid import uuid4

from libs.backend.arrivals import adopt_along
from libs.backend.direct import DirectCalls, is_marked
from libs.backend.logged import LogWaits
from libs.backend.pages import page_of
from libs.backend.passing import Passing
from libs.backend.quota import AccountQuota, Attempt
from libs.backend.scopes import change_of, limited, scope_of, within
from libs.backend.served_as import ServedAs
from libs.backend.serving import Serving
from libs.backend.store_watches import StoreWatches
from libs.backend.write_locks import WriteLocks
from libs.clock import Clock, SystemClock
from libs.contract.descriptors import Contract, Method
from libs.contract.operations import CallContext, List, Operations, Parsed, Read, Watch, Write, item_of, only_checked
from libs.contract.pages import make_token
from libs.contract.schemas import NEWEST
from libs.contract.watches import frame, position_of
from libs.errors import BatonError, OwnerUnavailable
from libs.locks.port import LockManager
from libs.ownership.errors import NotOwner
from libs.ownership.model import Answered, Call, Changed, Found, Version, bucket_of
from libs.ownership.rules import Change, decide_write, done, may_change, read_as_owner
from libs.rpc import metadata
from libs.rpc.caller import Caller, asks_why, make_id, read_caller
from libs.rpc.clients import Clients, name_of
from libs.rpc.errors import Context, Pairs, add_trailers
from libs.rpc.server import RawService
from libs.store.port import StorePorts
from libs.tasks import Background

Answering = Callable[[str, bytes, Context], Awaitable[bytes]]
Streaming = Callable[[str, bytes, Context], AsyncGenerator[bytes, None]]
"""Arguments: a method's name, a request and its call."""

DIRECT = "direct route"
"""Reason of a store for its answer to a direct call."""

ANSWER_SECONDS = 0.05
"""Part of a caller's time that is reserved for the answer on its way."""


@dataclass(frozen=True, slots=True)
class Dependencies:
    """Services and settings that calls share."""

    serving: Serving
    background: Background
    """Owns writes: a caller that leaves does not interrupt its write."""
    clock: Clock
    logged: LogWaits
    """Waits until a write is in the log, for callers that require it."""
    locks: LockManager | None = None
    """Serializes writers of a busy record. The row's version decides in any case."""
    behind_seconds: Callable[[], float | None] = lambda: None
    """Maximum lag of this store's feed in seconds; None if unknown."""
    public_logged: bool = False
    """Writes at the public listener are acknowledged from the log."""
    no_lock_needed: Callable[[], None] = lambda: None
    """Called for each write that succeeded without waiting for a lock."""
    public_schema: int = NEWEST
    """Schema version of callers at the public listener that send none."""
    clients: Clients | None = None
    """Callers of the public listener that use a deprecated interface."""
    account_records: int = 0
    """Maximum number of live records of an account; 0: no limit."""
    served_as: ServedAs = field(default_factory=lambda: ServedAs(SystemClock()))
    """Subjects under which callers of the public listener are served."""
    direct: DirectCalls = field(default_factory=lambda: DirectCalls(SystemClock()))
    """Callers of the public listener that follow the router's routes."""


class Calls:
    """Reads, writes and lists of one contract over one store's ports."""

    def __init__(self, operations: Operations, contract: Contract, ports: StorePorts, deps: Dependencies) -> None:
        self._operations = operations
        self._methods = {name: contract.methods[name] for name in operations.methods}
        self._watches = [name for name, method in self._methods.items() if method.watch is not None]
        self._contract = contract
        self._schemas = contract.schemas
        self._ports = ports
        self._watching = StoreWatches(ports)
        self._deps = deps
        self._quota: AccountQuota | None = None
        if deps.account_records and contract.account is not None:
            self._quota = AccountQuota(deps.account_records, contract.account, ports.inspection, deps.clock)
        self._write_locks = WriteLocks(ports, deps.locks, deps.no_lock_needed)

    def internal(self) -> RawService:
        """The service for the router, which trusts its metadata and never forwards."""
        return self._service(self._answer_internal, self._watch_internal)

    def public(self, passing: Passing | None) -> RawService:
        """The service for clients. `passing`: the way to the router; None without a router."""
        return self._service(partial(self._answer_public, passing), partial(self._watch_public, passing))

    def _service(self, answer: Answering, watch: Streaming) -> RawService:
        once = {name: partial(answer, name) for name in self._methods if name not in self._watches}
        return RawService(self._operations.service, once, {name: partial(watch, name) for name in self._watches})

    async def _answer_internal(self, method: str, request: bytes, context: Context) -> bytes:
        self._deps.serving.check()
        found = context.invocation_metadata()
        caller = read_caller(found, internal=True, schema_version=self._schemas.asked(found))
        parsed = self._parse_once(method, request, caller)
        if isinstance(parsed, Write):
            await adopt_along(self._ports, parsed.key, found)
            return await self._write(method, parsed, caller, context)
        if isinstance(parsed, List):
            # One store's page cannot be strict: the other one may own newer rows.
            context.set_trailing_metadata(self._stale())
            return await self._list(parsed)
        if caller.replica:
            return await self._read_replica(parsed, context)
        return await self._read(parsed, context if caller.explain else None)

    async def _answer_public(self, passing: Passing | None, method: str, request: bytes, context: Context) -> bytes:
        rule = self._methods[method]
        if is_marked(context.invocation_metadata()) and rule.key is not None and rule.shape is None:
            return await self._answer_direct(passing, method, request, context)
        self._deps.serving.check()
        caller = self._client(context)
        add_trailers(context, self._warning(context, caller))
        parsed = self._parse_once(method, request, caller)
        try:
            if not isinstance(parsed, List):
                return await self._own(method, parsed, caller, context)
            if passing is None:
                return await self._list(parsed)
        except NotOwner as error:
            if passing is None:
                raise _no_router() from error
        return await passing.call(rule.path, request, context, self._metadata_for(caller, context))

    async def _answer_direct(self, passing: Passing | None, method: str, request: bytes, context: Context) -> bytes:
        """Answer a client that follows the router's routes (see `libs.backend.direct`)."""
        deps, rule, found = self._deps, self._methods[method], context.invocation_metadata()
        # As at the router: a client cannot know which store answers it.
        version = self._schemas.asked(found)
        logged = deps.public_logged or deps.direct.routes.logged
        caller = self._caller(context, version)._replace(logged=logged, explain=asks_why(found))
        parsed = self._parse_once(method, request, caller)
        if isinstance(parsed, List):
            raise ValueError(f"{rule.path} is parsed as a list")
        bucket = bucket_of(parsed.key)
        led_here = deps.direct.routes.led_here(rule.path, bucket)
        add_trailers(context, self._warning(context, caller, led_here=led_here))
        if passing is None:
            deps.serving.check()
        elif not (
            deps.serving.serving
            and not self._schemas.is_old(version)
            and (not caller.explain or self._shows_versions())
            and deps.direct.routes.has(rule.path, bucket)
        ):
            return await self._pass_direct(passing, method, request, context, caller)
        why = self._why() if caller.explain and self._shows_versions() else ()
        try:
            answer = await deps.direct.measured(rule, context, self._own(method, parsed, caller, context))
            add_trailers(context, why)
            return answer
        except NotOwner as error:
            if passing is None:
                raise _no_router() from error
        except BatonError:
            add_trailers(context, why)
            raise
        return await self._pass_direct(passing, method, request, context, caller)

    async def _pass_direct(
        self, passing: Passing, method: str, request: bytes, context: Context, caller: Caller
    ) -> bytes:
        self._deps.direct.passed_on += 1
        return await passing.call(self._methods[method].path, request, context, self._metadata_for(caller, context))

    async def _own(self, method: str, parsed: Read | Write, caller: Caller, context: Context) -> bytes:
        """Answer as the record's owner. Raises NotOwner."""
        if isinstance(parsed, Write):
            return await self._write(method, parsed, caller, context)
        return await self._read(parsed, context if caller.explain and self._shows_versions() else None)

    def _shows_versions(self) -> bool:
        """Whether an explanation may show the running call's caller store and version."""
        scope = scope_of(self._contract)
        return scope is None or not scope.is_restricted

    def _why(self) -> Pairs:
        """The explanation of a direct call."""
        return (metadata.REASON, DIRECT), (metadata.STORE, self._ports.store.value), (metadata.STALE, "0")

    def _client(self, context: Context) -> Caller:
        """The caller at the public listener. Raises InvalidField."""
        return self._caller(context, self._schemas.asked(context.invocation_metadata(), self._deps.public_schema))

    def _caller(self, context: Context, version: int) -> Caller:
        """The caller at the public listener, of this schema version."""
        return read_caller(
            context.invocation_metadata(),
            internal=False,
            serves_subjects=self._deps.served_as.subjects,
            schema_version=version,
            logged=self._deps.public_logged,
        )

    def _warning(self, context: Context, caller: Caller, *, led_here: bool = False) -> Pairs:
        """Count the client of the public listener, and return the warning for it."""
        clients = self._deps.clients
        return () if clients is None else clients.note(context, caller.schema_version, led_here=led_here)

    def _metadata_for(self, caller: Caller, context: Context) -> tuple[tuple[str, str], ...]:
        """Metadata about a caller of this listener that the router would lack."""
        if self._schemas.sent(context.invocation_metadata()) is not None or not self._schemas.metadata:
            version: tuple[tuple[str, str], ...] = ()
        else:
            version = ((self._schemas.metadata, str(caller.schema_version)),)
        return (*version, (metadata.CLIENT, name_of(context)))

    async def _watch_internal(self, method: str, request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        found = context.invocation_metadata()
        caller = read_caller(found, internal=True, schema_version=self._schemas.asked(found))
        async with aclosing(self._watch(method, request, caller)) as answers:
            async for answer in answers:
                yield answer

    async def _watch_public(
        self, passing: Passing | None, method: str, request: bytes, context: Context
    ) -> AsyncGenerator[bytes, None]:
        """Watch through the router, which continues it at the other store if necessary."""
        self._deps.serving.check()
        caller = self._client(context)
        if warning := self._warning(context, caller):
            await context.send_initial_metadata(warning)
        if passing is None:
            answers = self._watch(method, request, caller)
        else:
            path = self._methods[method].path
            answers = passing.stream(path, request, context, self._metadata_for(caller, context))
        async with aclosing(answers):
            async for answer in answers:
                yield answer

    async def _watch(self, method: str, request: bytes, caller: Caller) -> AsyncGenerator[bytes, None]:
        rule = self._methods[method]
        self._deps.serving.check()
        wanted = self._parse(method, request, caller)
        if not isinstance(wanted, Watch):
            raise ValueError(f"{rule.path} is not parsed as a watch")
        scope = scope_of(self._contract)
        if scope is not None:
            wanted = replace(wanted, filter=scope.filtered(wanted.filter), hides=scope.hides)
        message = rule.parse(request)
        _, question = rule.watched(message)
        mark = "" if scope is None else scope.mark
        async with aclosing(self._watching.steps(wanted, position_of(rule, message), mark)) as steps:
            async for step in steps:
                self._deps.serving.check()
                yield frame(rule, step, question)

    def _parse_once(self, method: str, request: bytes, caller: Caller) -> Read | Write | List:
        """Parse a unary call."""
        parsed = self._parse(method, request, caller)
        if isinstance(parsed, Watch):
            raise ValueError(f"{self._methods[method].path} is parsed as a watch")
        return parsed

    def _parse(self, method: str, request: bytes, caller: Caller) -> Parsed:
        rule = self._methods[method]
        if rule.is_read:
            return self._operations.parse(method, request, CallContext("", "", 0.0, caller.schema_version))
        request_id = caller.request_id or str(uuid4())
        made_id = caller.made_id or self._made_id(rule, request, request_id)
        call = CallContext(request_id, made_id, self._deps.clock.now(), caller.schema_version)
        return self._operations.parse(method, request, call)

    @staticmethod
    def _made_id(rule: Method, request: bytes, request_id: str) -> str:
        """Id for a create without one, derived from the request's own id if it has one, so that a retry gets the same
        id."""
        if rule.key is None or rule.key.made_id is None:
            return ""
        message = rule.parse(request)
        return make_id(getattr(message, rule.request_id) or request_id)

    async def _find(self, key: str) -> Found:
        """The state of the key as the caller may see it."""
        scope = scope_of(self._contract)
        found = await self._ports.records.read(key)
        return found if scope is None else scope.shown(found)

    async def _read(self, read: Read, version_to: Context | None = None) -> bytes:
        """`version_to`: call that gets the record's version as metadata, also with an error."""
        found = await self._find(read.key)
        row = read_as_owner(found, self._ports.store)
        if version_to is not None:
            add_trailers(version_to, ((metadata.VERSION, _shown(found.version)),))
        return read.answer(row)

    async def _read_replica(self, read: Read, context: Context) -> bytes:
        found = await self._find(read.key)
        trailers: tuple[tuple[str, str], ...] = ((metadata.VERSION, _shown(found.version)),)
        if not may_change(found, self._ports.store):
            trailers += self._stale()
        context.set_trailing_metadata(trailers)
        return read.answer(found.row)

    async def _list(self, wanted: List) -> bytes:
        rows, more = await page_of(self._ports, limited(wanted, scope_of(self._contract)))
        token = make_token(rows[-1].row.key, wanted.filter_hash) if more else ""
        items = [item_of(wanted, row) for row, matches in rows if matches]
        return wanted.answer([item for item in items if item is not None], token)

    async def _write(self, method: str, write: Write, caller: Caller, context: Context) -> bytes:
        me, scope = self._ports.store, scope_of(self._contract)
        attempt = Attempt()
        limited_change = self._within_quota(attempt, change_of(self._methods[method], write, scope))
        change = only_checked(limited_change) if write.only_checks else limited_change
        call = Call(
            write.key, caller.principal, write.request_id, write.request_hash, caller.traceparent, caller.subject
        )
        late = False
        shown: Version | None = None

        def decide(found: Found) -> Changed | Answered:
            nonlocal late, shown
            # The stored answer is gone: the current record stands for it.
            known = done(found, call)
            late = known is not None and known.answer is None
            try:
                decided = decide_write(found, me, call, change)
            except NotOwner:
                raise
            except BatonError:
                shown = found.version if found.row is not None else None
                raise
            if late and found.row is not None:
                write.check_late(found.row, decided.version)
            if caller.logged and isinstance(decided, Changed):
                self._deps.logged.check(self._deps.clock.monotonic())
            return decided

        decide_within = within(scope, me, limited_change, decide)
        work = partial(self._write_locks.write, call, decide_within, under_lock=write.under_lock)
        try:
            outcome = await self._deps.background.run(work() if self._quota is None else self._quota.run(attempt, work))
        except BatonError:
            if caller.logged and shown is not None:
                await self._deps.logged.wait_for_refusal(
                    (call.key, shown), _left(context), self._deps.clock.monotonic()
                )
            raise
        if caller.logged:
            name = call.key, outcome.version
            await self._deps.logged.wait(name, _left(context), fresh=isinstance(outcome, Changed))
        if late or (caller.explain and (scope is None or not scope.is_restricted)):
            add_trailers(context, ((metadata.VERSION, _shown(outcome.version)),))
        return write.reply(outcome.answer)

    def _within_quota(self, attempt: Attempt, change: Change) -> Change:
        return change if self._quota is None else self._quota.limited(attempt, change)

    def _stale(self) -> tuple[tuple[str, str], ...]:
        behind = self._deps.behind_seconds()
        age = () if behind is None else ((metadata.AGE_SECONDS, f"{behind:.3f}"),)
        return ((metadata.STALE, "1"), *age)


def _no_router() -> OwnerUnavailable:
    return OwnerUnavailable(
        "another store owns the record: call the router, or give this store its address (setting `router`)"
    )


def _shown(version: Version) -> str:
    return f"{version.term}-{version.revision}"


def _left(context: Context) -> float:
    """Seconds for which the caller will still wait."""
    remaining: float | None = context.time_remaining()
    return inf if remaining is None else max(remaining - ANSWER_SECONDS, 0.0)
