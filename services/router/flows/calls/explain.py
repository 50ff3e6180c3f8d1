"""Explains where this router would send a call now, by the same plan as calls, and reads both stores' rows.

It does not move any record.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from libs.contract.descriptors import Contract
from libs.errors import BatonError, InvalidField
from libs.ownership.model import Store, Version, bucket_of
from libs.ownership.wire import STORES, version_from_pb
from libs.pb.baton.replication.v1 import replication_pb2 as pb
from libs.text import plain
from services.router.core.cohorts import Cohort, cohort_of
from services.router.core.phase import Setting
from services.router.core.plan import UNKNOWN_ACCOUNT, Target, canary_buckets, target
from services.router.flows.steering_view import Steering
from services.router.flows.stores import StoreClient, Stores

ANSWER_SECONDS = 1.0

LIST = "list"
MAX_KEY_CHARACTERS = 1000


NO_VERSION = Version(0, 0)


@dataclass(frozen=True, slots=True)
class RowView:
    """A store's row of a key."""

    store: Store
    trouble: str = ""
    """The store's error; if there is one, the fields below are not known."""
    exists: bool = False
    live: bool = False
    version: Version = NO_VERSION
    owner: Store | None = None
    """The owner in this store's row. If it has no row, the owner of the bucket."""
    account: str = ""
    """Account of the record; "" if it has none, or this program cannot read it."""

    def __str__(self) -> str:
        if self.trouble:
            return f"store {self.store} is out of reach"
        owner = f"owner {self.owner}" if self.owner else "no owner"
        if not self.exists:
            return f"store {self.store} has no row, its bucket has {owner}"
        state = "" if self.live else ", deleted"
        return f"store {self.store} has version {self.version.term}-{self.version.revision}{state}, {owner}"


@dataclass(frozen=True, slots=True)
class Explanation:
    target: Target
    because: str
    setting: Setting
    bucket: int | None
    """None for a list."""
    canary_buckets: int
    rows: tuple[RowView, ...]
    then: str


class Explainer:
    def __init__(self, contract: Contract, steering: Steering, stores: Stores) -> None:
        self._steering = steering
        self._stores = stores
        self._account = contract.account
        self._lists = any(method.shape is not None for method in contract.methods.values())
        self._keys: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
        for method in contract.methods.values():
            if method.key is not None:
                parts = [re.escape(part) for part in method.key.template.split("{}")]
                shape = (method.key.template, re.compile("(.+)".join(parts)))
                self._keys.setdefault(method.operation, []).append(shape)
        named = [shape for shapes in self._keys.values() for shape in shapes if shape[0].replace("{}", "")]
        self._names = named or [shape for shapes in self._keys.values() for shape in shapes]
        """Templates of record names: those that fix more than a single name, if there are any."""

    async def explain(self, key: str, operation: str) -> Explanation:
        """Explain a call. The errors of unreachable stores are part of the answer. Raises InvalidField."""
        self._check(key, operation)
        steering = self._steering
        setting, flags = steering.current, steering.flags
        bucket = bucket_of(key) if key else None
        rows = tuple(await asyncio.gather(*(self._row(client, key) for client in self._stores.values()))) if key else ()
        account = _account(rows)
        chosen = target(setting, flags, operation, bucket, key=key, account=account)
        return Explanation(
            target=chosen,
            because=_because(setting, chosen, operation, bucket, cohort_of(setting.cohorts, key, account)),
            setting=setting,
            bucket=bucket,
            canary_buckets=canary_buckets(setting.canary_permille) if setting.rule.canary else 0,
            rows=rows,
            then=_then(chosen, operation, {row.store: row for row in rows}),
        )

    def _check(self, key: str, operation: str) -> None:
        operations = [*self._keys, *([LIST] if self._lists else [])]
        if operation not in operations:
            raise InvalidField("operation", operation, "one of " + ", ".join(operations))
        if operation == LIST:
            if key:
                raise InvalidField("key", key, "no key: a list is not a call on one record")
            return
        if len(key) > MAX_KEY_CHARACTERS or not any(pattern.fullmatch(key) for _, pattern in self._names):
            wanted = sorted({template for template, _ in self._names})
            shown = " or ".join(template.replace("{}", "...") for template in wanted)
            whole = [template.format(key) for template in wanted if template.count("{}") == 1]
            hint = f": {' or '.join(whole)}?" if key and len(key) <= MAX_KEY_CHARACTERS and "/" not in key else ""
            raise InvalidField("key", key, f"a record's name, {shown}{hint}")

    async def _row(self, client: StoreClient, key: str) -> RowView:
        request = pb.ReadRecordsRequest(keys=[key], mark_too_large=True)
        try:
            answer = await client.ask(client.replication.ReadRecords, request, ANSWER_SECONDS)
            row = answer.rows[0]
            if row.too_large_bytes and (large := await _look(client, key)):
                return large
        except BatonError as error:
            return RowView(client.store, trouble=error.message)
        if not row.HasField("record"):
            return RowView(client.store, owner=STORES.get(row.bucket_owner.owner))
        record = row.record
        return RowView(
            client.store,
            exists=True,
            live=record.live,
            version=version_from_pb(record.version),
            owner=STORES.get(record.owner),
            account=self._account.of(record.payload, record.schema_version) if self._account else "",
        )


def _account(rows: Iterable[RowView]) -> str | None:
    """The record's account; None if no store has shown the record."""
    found = [row for row in rows if row.exists and not row.trouble]
    return max(found, key=lambda row: row.version).account if found else None


async def _look(client: StoreClient, key: str) -> RowView | None:
    """Read a row without its content, if it is too large. Raises the errors of the store's client.

    Only an old program can have written such a row, and it wrote it live.
    """
    request = pb.LookAtRecordsRequest(keys=[key], limit=1, brief=True)
    answer = await client.ask(client.replication.LookAtRecords, request, ANSWER_SECONDS)
    for look in answer.looks:
        version, owner = version_from_pb(look.version), STORES.get(look.owner)
        return RowView(client.store, exists=True, live=True, version=version, owner=owner)
    return None


def _because(setting: Setting, chosen: Target, operation: str, bucket: int | None, cohort: Cohort | None) -> str:
    where = f"the call goes to {chosen.store}"
    reasons = {
        "hold": "all traffic is held at A since a rollback",
        "global flag": f"the global flag is {_word(chosen)}",
        f"{operation} flag": f"the flag for {operation} is {_word(chosen)}, and the global flag is not false",
        "rehearsal": f"bucket {bucket} is away for a rehearsal",
        "canary": f"bucket {bucket} is one of the {canary_buckets(setting.canary_permille)} canary buckets"
        f" ({setting.canary_permille / 10:g} %)",
        UNKNOWN_ACCOUNT: "no store shows the account of the record, and a cohort by account may want it elsewhere, so"
        " the call moves no record",
        "phase": f"no other rule applies, and the home of all traffic in {setting.phase.value} is {chosen.store}",
    }
    if cohort is not None and bucket is not None:
        reasons[f"cohort {cohort.name}"] = _share(cohort, bucket)
    return f"{reasons.get(chosen.rule, chosen.rule)}: {where}"


def _share(cohort: Cohort, bucket: int) -> str:
    is_in = "is one" if cohort.store(bucket) is Store.B else "is not one"
    count = canary_buckets(cohort.permille)
    return (
        f"the record is of cohort {cohort.name} ({cohort.rule}), and bucket {bucket} {is_in} of the {count} buckets"
        f" of its share ({plain(cohort.permille / 10)} %)"
    )


def _word(chosen: Target) -> str:
    return "true" if chosen.store is Store.B else "false"


def _then(chosen: Target, operation: str, rows: Mapping[Store, RowView]) -> str:
    """Describe the course of the call, given the rows."""
    to = chosen.store
    if operation == LIST:
        return (
            "a list asks both stores and takes the newer row of each name;"
            f" if store {to.other} cannot answer, the page of store {to} is the answer, marked stale"
        )
    mine, other = rows[to], rows[to.other]
    if mine.trouble:
        return f"store {to} is out of reach: the call goes to store {to.other}, which answers a write only as the owner"
    if mine.owner is to:
        return f"store {to} owns {_what(mine)} and answers"
    if operation == "get":
        if not other.trouble and other.owner is to.other:
            return f"store {to} does not own {_what(mine)}: the read is answered by store {to.other}, its owner"
        return "no store owns it now: a read takes the newer of both rows, marked stale if a store does not answer"
    if other.trouble:
        return f"store {to} does not own {_what(mine)} and store {to.other} is out of reach: a write is UNAVAILABLE"
    if not mine.exists and not other.exists and operation != "create":
        return f"there is no such record: store {to.other} owns its bucket and answers so"
    return f"store {to} does not own {_what(mine)}: a write first brings it there from store {to.other}"


def _what(row: RowView) -> str:
    return "the record" if row.exists else "the record's bucket"
