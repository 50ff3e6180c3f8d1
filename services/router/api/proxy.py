"""The contract's service, by forwarding of serialized messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Never
from uuid import uuid4

import grpc
from google.protobuf.message import Message

from libs.clock import Clock
from libs.contract.descriptors import Contract, Method
from libs.errors import BatonError, InvalidField
from libs.identity.principal import current_principal
from libs.ownership.limits import MAX_REQUEST_ID_BYTES
from libs.ownership.model import Store, bucket_of
from libs.rpc import metadata
from libs.rpc.caller import asks_why, make_id, read_caller
from libs.rpc.clients import Clients
from libs.rpc.errors import Context, abort, add_trailers, pass_on
from libs.rpc.forwarded import pair_of
from libs.rpc.hops import passed_on
from libs.rpc.server import RawService
from libs.tasks import Background
from services.router.api.watch_methods import WatchMethods
from services.router.core.phase import Phase, Setting
from services.router.core.plan import Target, target
from services.router.flows.calls.forward import MARGIN_SECONDS, ClientCall, Forward
from services.router.flows.calls.listing import ListCall, Listing
from services.router.flows.calls.shadow import Shadow
from services.router.flows.calls.watch_streams import WatchStreams
from services.router.flows.calls.write_auditor import Auditor
from services.router.flows.steering_view import Steering
from services.router.flows.stores import Answer, Refused
from services.router.flows.traffic import Traffic

WRITE_SECONDS = 2.0
"""Minimum time for a write, even if its caller waits less. A task of its own finishes it."""

DEFAULT_SECONDS = 5.0
"""Timeout of a call without a deadline."""


_KEPT = frozenset({metadata.STALE, metadata.AGE_SECONDS, metadata.VERSION})
"""The trailers of a store that are passed on to clients."""


@dataclass(frozen=True, slots=True)
class Proxy:
    contract: Contract
    forward: Forward
    listing: Listing
    steering: Steering
    traffic: Traffic
    writes: Background
    clock: Clock
    shadow: Shadow
    ledger: Auditor
    logged: frozenset[Phase] = frozenset()
    """Phases that answer a write only once its event is in the log."""
    watching: WatchStreams = field(kw_only=True)
    clients: Clients = field(kw_only=True)
    """Clients of old schema versions."""

    def service(self) -> RawService:
        """The service to register at the public listener."""
        methods = self.contract.methods.items()
        once = {name: self._handler(method) for name, method in methods if method.watch is None}
        watches = WatchMethods(self.contract, self.watching, self.traffic, self.clients)
        streams = {name: watches.handler(method, self._begins(method)) for name, method in methods if method.watch}
        return RawService(self.contract.service, once, streams)

    def _begins(self, method: Method) -> Callable[[bool], Store]:
        return lambda old: self._plan(self.steering.current, method, None, old_client=old).store

    def _handler(self, method: Method) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(request: bytes, context: Context) -> bytes:
            call: ClientCall | None = None
            why = Why(self.steering.current, asks_why(context.invocation_metadata()))
            try:
                version = self.contract.schemas.asked(context.invocation_metadata())
                add_trailers(context, self.clients.note(context, version))
                message = method.parse(request)
                old = self.contract.schemas.is_old(version) and (method.is_read or method.may_create(message))
                if method.shape is not None:
                    why.chosen = chosen = self._plan(why.setting, method, None, old_client=old)
                    ends_at = self.clock.monotonic() + _time_left(context)
                    listed = ListCall(method, message, request, ends_at, version, (pair_of(current_principal()),))
                    answer = await self.listing.call(listed, chosen.store)
                else:
                    call = self._client_call(method, message, request, context, why)
                    account = self._account(why.setting, method, message)
                    why.chosen = chosen = target(
                        why.setting,
                        self.steering.flags,
                        method.operation,
                        call.bucket,
                        old_client=old,
                        key=call.key,
                        account=account,
                    )
                    work = self.forward.call(call, chosen)
                    answer = await (work if method.is_read else self.writes.run(work))
            except Refused as refused:
                self._compare(call, refused)
                shown = None if self._is_restricted() else refused.store
                add_trailers(context, why.trailers_of(shown, dict(refused.error.trailing_metadata() or ())))
                return await self._refuse(context, refused)
            except BatonError as error:
                self._count(error)
                add_trailers(context, why.trailers_of(None, {}))
                return await abort(context, error)
            kept = tuple((name, value) for name, value in answer.trailers.items() if name in _KEPT)
            add_trailers(context, (*kept, *why.trailers_of(answer.store, answer.trailers)))
            self._compare(call, answer)
            if call is not None and not method.is_read:
                self.ledger.offer(call, message, answer, version)
            return answer.data

        return handle

    def _client_call(self, method: Method, message: Message, request: bytes, context: Context, why: Why) -> ClientCall:
        if method.key is None:
            raise ValueError(f"{method.path} has no key")
        schemas = self.contract.schemas
        caller = read_caller(context.invocation_metadata(), internal=False)
        seconds = left = _time_left(context)
        extra: list[tuple[str, str | bytes]] = [pair_of(current_principal())]
        key = method.key.of(message)
        if not method.is_read:
            request_id = _own_request_id(method, message) or str(uuid4())
            extra.append((metadata.REQUEST_ID, request_id))
            if why.setting.serves_subjects:
                extra.append((metadata.SERVED_AS, metadata.SUBJECT))
            if method.key.lacks_id(message):
                made = make_id(request_id)
                extra.append((metadata.MADE_ID, made))
                key = method.key.with_id(message, made)
            seconds = max(left, WRITE_SECONDS)
            if why.setting.phase in self.logged:
                extra.append((metadata.ACK, metadata.LOGGED))
        if why.asked:
            extra.append((metadata.EXPLAIN, "1"))
        if caller.traceparent:
            extra.append((metadata.TRACEPARENT, caller.traceparent))
        if schemas.metadata:
            # Always sent: the newest version that a store knows may be a different one.
            extra.append((schemas.metadata, str(schemas.asked(context.invocation_metadata()))))
        extra += passed_on(context.invocation_metadata())
        now = self.clock.monotonic()
        return ClientCall(
            method=method,
            request=request,
            key=key,
            bucket=bucket_of(key),
            may_create=method.may_create(message),
            extra=tuple(extra),
            deadline=now + seconds,
            answer_by=now + left - MARGIN_SECONDS,
        )

    def _compare(self, call: ClientCall | None, outcome: Answer | Refused) -> None:
        """Offer a read to the shadow. `Listing` offers the rows of lists itself."""
        if call is not None and call.method.is_read:
            self.shadow.offer(call, outcome)

    async def _refuse(self, context: Context, refused: Refused) -> Never:
        if refused.error.code() is grpc.StatusCode.UNAVAILABLE:
            self.traffic.unavailable += 1
        await pass_on(context, refused.error, without=(metadata.VERSION,) if self._is_restricted() else ())

    def _is_restricted(self) -> bool:
        """Whether the caller reaches some accounts only. Then a refusal shows neither store nor version: both may
        depend on a record that the caller must not know."""
        return self.contract.account is not None and current_principal().reachable is not None

    def _count(self, error: BatonError) -> None:
        if error.code == "UNAVAILABLE":
            self.traffic.unavailable += 1

    def _account(self, setting: Setting, method: Method, message: Message) -> str | None:
        """Return the account of the record: that of a caller with one account, or of a new record. None: unknown."""
        account = self.contract.account
        if account is None or not setting.cohorts:
            return None if account else ""
        reachable = current_principal().reachable
        if reachable is not None and len(reachable) == 1:
            return next(iter(reachable))
        return account.of_new(message) if method.operation == "create" else None

    def _plan(self, setting: Setting, method: Method, bucket: int | None, *, old_client: bool = False) -> Target:
        return target(setting, self.steering.flags, method.operation, bucket, old_client=old_client)


@dataclass(slots=True)
class Why:
    """The explanation for a caller that asks for it, in metadata of the answer or the error."""

    setting: Setting
    asked: bool
    chosen: Target | None = None
    """None if the request was refused before it was planned."""

    def trailers_of(
        self, store: Store | None, trailers: Mapping[str, str | bytes]
    ) -> tuple[tuple[str, str | bytes], ...]:
        """`store`: the store that answered, or None. `trailers`: those of the answer."""
        if not self.asked:
            return ()
        told: list[tuple[str, str | bytes]] = [(metadata.PHASE, self.setting.phase.value)]
        if self.chosen is not None:
            told.append((metadata.REASON, self.chosen.rule))
        if store is not None:
            told.append((metadata.STORE, trailers.get(metadata.STORE, store.value)))
            if metadata.STALE not in trailers:
                told.append((metadata.STALE, "0"))
        return tuple(told)


def _time_left(context: Context) -> float:
    left: float | None = context.time_remaining()
    return DEFAULT_SECONDS if left is None else left


def _own_request_id(method: Method, message: Message) -> str:
    """Return the request id in lower case; "" if there is none.

    Raises InvalidField for one that is not valid as metadata: a call with it would not reach a store, but run into its
    deadline.
    """
    value: str = getattr(message, method.request_id)
    if len(value) > MAX_REQUEST_ID_BYTES or not (value.isascii() and value.isprintable()):
        raise InvalidField(method.request_id, value, "a UUID")
    return value.lower()
