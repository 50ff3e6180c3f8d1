"""Golden cases of a store as transcripts: a request, and below it the store's answer.

    = a sentence: the case
    > command argument... option=value...
    the answer, any number of lines

"me" is the store under test and "other" the other one, so a case holds for A and for B. Every key's bucket begins as
(0, 1, me). `--rewrite-golden` writes the memory store's answers into the files; the difference is then reviewed.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from libs.contract.pages import Filter, Page
from libs.errors import BatonError
from libs.ownership.model import NEVER, Answered, BucketOwner, Changed, Record, Row, Served, Store, Version, bucket_of
from libs.ownership.rules import Change, Resource
from libs.ownership.wire import record_of_event
from libs.store.inspection import ExportQuery
from libs.store.port import Listed, StorePorts
from tests.contracts.store_adapters import call_of, hash_of, own, sandbox, word_of, write

GOLDEN = Path(__file__).parent / "golden"


@dataclass
class Exchange:
    command: str
    answer: list[str] = field(default_factory=list)


@dataclass
class Case:
    title: str
    exchanges: list[Exchange] = field(default_factory=list)

    def __str__(self) -> str:
        return self.title.replace(" ", "_")


def read_cases(path: Path) -> list[Case]:
    cases: list[Case] = []
    for line in path.read_text().splitlines():
        if line.startswith("= "):
            cases.append(Case(line[2:]))
        elif line.startswith("> "):
            cases[-1].exchanges.append(Exchange(line[2:]))
        elif line.strip() and not line.startswith("#"):
            cases[-1].exchanges[-1].answer.append(line)
    return cases


def show_case(case: Case) -> str:
    lines = [f"= {case.title}"]
    for exchange in case.exchanges:
        lines += [f"> {exchange.command}", *exchange.answer]
    return "\n".join(lines) + "\n"


def _version(text: str) -> Version:
    term, revision = text.split("-")
    return Version(int(term), int(revision))


def _show(version: Version) -> str:
    return f"{version.term}-{version.revision}"


class _Refused(BatonError):
    """The contract refuses."""


class Teller:
    """Runs a case's commands on a store."""

    def __init__(self, store: StorePorts) -> None:
        self.store = store
        self._owned: set[int] = set()

    async def run(self, case: Case) -> Case:
        """The case with the answers of this store."""
        return Case(case.title, [Exchange(one.command, await self._tell(one.command)) for one in case.exchanges])

    async def _tell(self, text: str) -> list[str]:
        command, *words = shlex.split(text)
        options = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        await self._begin([word.split("@")[0] for word in plain if word.startswith("sandboxes/")])
        tell: Callable[[list[str], dict[str, str]], Awaitable[list[str]]] = getattr(
            self, "_" + command.replace("-", "_")
        )
        try:
            return await tell(plain, options)
        except BatonError as error:
            told = {key: value for key, value in error.metadata.items() if key != "owner"}
            owner = [f"owner={self._who(Store(error.metadata['owner']))}"] if "owner" in error.metadata else []
            return [" ".join([type(error).__name__, *owner, *(f"{key}={value}" for key, value in told.items())])]

    async def _begin(self, keys: list[str]) -> None:
        fresh = [key for key in keys if bucket_of(key) not in self._owned]
        self._owned |= {bucket_of(key) for key in fresh}
        await own(self.store, fresh)

    def _who(self, store: Store) -> str:
        return "me" if store is self.store.store else "other"

    def _store(self, word: str) -> Store:
        return self.store.store if word == "me" else self.store.store.other

    def _show_row(self, row: Row) -> str:
        kind = "live" if row.live else "stub" if row.write_version == NEVER else "dead"
        etag = _show(row.write_version)
        return f"{_show(row.version)} owner={self._who(row.owner)} write={etag} {kind} {word_of(row.payload)}"

    def _show_record(self, record: Record) -> str:
        served = ", ".join(
            f"{one.request_id}@{_show(one.version)}:{'?' if one.answer is None else word_of(one.answer)}"
            for one in record.served
        )
        made = self._who(record.origin)
        return f"{record.row.key} {self._show_row(record.row)} made-by={made} [{served}]"

    def _show_bucket(self, bucket_owner: BucketOwner) -> str:
        return f"{bucket_owner.term} {bucket_owner.version} owner={self._who(bucket_owner.owner)}"

    async def _write(self, plain: list[str], options: dict[str, str]) -> list[str]:
        key, request, action, *word = plain
        call = call_of(key, request, options.pop("hash", "h"), options.pop("by", "ann"))
        outcome = await write(self.store, call, self._change(key, action, word, options))
        kind = "changed" if isinstance(outcome, Changed) else "answered"
        return [f"{kind} {_show(outcome.version)} {word_of(outcome.answer)}"]

    def _change(self, key: str, action: str, word: list[str], options: dict[str, str]) -> Change:
        payload = sandbox(key, word[0] if word else "", **options)

        def change(row: Row | None, version: Version) -> Resource | Answered:
            if action == "refuse":
                raise _Refused
            if action == "check":
                return Answered(payload, row.version if row else NEVER)
            if action == "keep" and row is not None:
                return Resource(row.payload, row.live, 1)
            return Resource(payload, action == "put", 1)

        return change

    async def _read(self, plain: list[str], options: dict[str, str]) -> list[str]:
        return [
            self._show_row(found.row) if found.row else f"none, bucket owner {self._show_bucket(found.bucket_owner)}"
            for found in await self.store.records.read_many(plain)
        ]

    async def _apply(self, plain: list[str], options: dict[str, str]) -> list[str]:
        records = [self._record(plain, options)] * int(options.get("times", "1"))
        applied, old = await self.store.transfers.apply(records)
        return [f"applied {applied} old {old}"]

    def _record(self, plain: list[str], options: dict[str, str]) -> Record:
        key, version, owner, word = plain
        at = _version(version)
        written = _version(options.get("write", version))
        payload = b"" if word == "-" else sandbox(key, word)
        live = written != NEVER and "dead" not in options
        row = Row(key, at, self._store(owner), written, live, payload, 1)
        served = [self._served(one, key) for one in filter(None, options.get("served", "").split(","))]
        return Record(row, tuple(served), row.owner, 1.0)

    def _served(self, text: str, key: str) -> Served:
        """request@version:word"""
        request, _, rest = text.partition("@")
        version, _, word = rest.partition(":")
        return Served("ann", request, hash_of("h"), _version(version), sandbox(key, word))

    async def _release(self, plain: list[str], options: dict[str, str]) -> list[str]:
        keys = [word for word in plain if word != "create"]
        released = await self.store.transfers.release(keys, self.store.store.other, create="create" in plain)
        lines = []
        for result in released.results:
            outcome = result.outcome.value if result.outcome else "busy"
            shown = self._show_record(result.record) if result.record else result.key
            bucket_owner = "" if result.record else f", bucket owner {self._show_bucket(result.bucket_owner)}"
            lines.append(f"{outcome}: {shown}{bucket_owner}")
        return lines + [f"remaining: {key}" for key in released.remaining]

    async def _release_bucket(self, plain: list[str], options: dict[str, str]) -> list[str]:
        return [
            self._show_bucket(await self.store.transfers.release_bucket(bucket_of(key), self.store.store.other))
            for key in plain
        ]

    async def _adopt_bucket(self, plain: list[str], options: dict[str, str]) -> list[str]:
        key, term, version, owner = plain
        bucket_owner = BucketOwner(bucket_of(key), int(term), int(version), self._store(owner))
        adopted, here = await self.store.transfers.adopt_bucket(bucket_owner)
        return [f"{'adopted' if adopted else 'refused'} {self._show_bucket(here)}"]

    async def _bucket_owner(self, plain: list[str], options: dict[str, str]) -> list[str]:
        here = await self.store.transfers.bucket_owners([bucket_of(key) for key in plain])
        return [self._show_bucket(bucket_owner) for bucket_owner in here]

    async def _outbox(self, plain: list[str], options: dict[str, str]) -> list[str]:
        pulled = await self.store.outbox.pull(int(options.get("limit", "100")), 0.0)
        # Only changes of one key have an order.
        entries = sorted(pulled, key=lambda entry: entry.key)
        records = [record_of_event(entry.event) for entry in entries]
        for entry, record in zip(entries, records, strict=True):
            assert (entry.key, entry.version) == (record.row.key, record.row.version)
        return [self._show_record(record) for record in records]

    async def _ack(self, plain: list[str], options: dict[str, str]) -> list[str]:
        named = [(key, _version(version)) for key, version in (word.split("@") for word in plain)]
        return [f"acknowledged {await self.store.outbox.ack(named)}"]

    async def _tick(self, plain: list[str], options: dict[str, str]) -> list[str]:
        await self.store.upkeep.tick(float(plain[0]))
        return []

    async def _prune(self, plain: list[str], options: dict[str, str]) -> list[str]:
        return [f"forgot {await self.store.upkeep.prune()}"]

    async def _export(self, plain: list[str], options: dict[str, str]) -> list[str]:
        query = ExportQuery(
            after=options.get("after", ""),
            limit=int(options.get("limit", "200")),
            buckets=(bucket_of(options["bucket-of"]),) if "bucket-of" in options else (),
            owned_only="owned" in plain,
            keys_only="keys" in plain,
        )
        records, more = await self.store.inspection.export(query)
        return [self._show_record(record) for record in records] + (["more"] if more else [])

    async def _list(self, plain: list[str], options: dict[str, str]) -> list[str]:
        labels = [label.split(":") for label in filter(None, options.get("label", "").split(","))]
        wanted = Filter(
            tuple((name, options[name]) for name in ("state", "account") if name in options),
            tuple((name, value) for name, value in labels),
            show_deleted="deleted" in plain,
        )
        page = Page(wanted, after=options.get("after", ""), limit=int(options.get("limit", "50")))
        named = tuple(word for word in plain if word.startswith("sandboxes/"))
        return [self._listed(one) for one in await self.store.records.page(replace(page, keys=named))]

    def _listed(self, listed: Listed) -> str:
        verdict = "" if listed.matches else " (does not match)"
        return f"{listed.row.key} {self._show_row(listed.row)}{verdict}"
