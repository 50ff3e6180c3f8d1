"""The evidence for a verdict: the clients' records, the content of the log and of both stores, and the records before.

It is written to files beside the clients' histories, so that it can be judged or inspected again without the system.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from libs.eventlog.codes import Codes
from libs.eventlog.port import EventLog
from libs.proving.history.consistency import LogEvent, Served
from libs.proving.history.history import Call, read_history
from libs.proving.trial.stores import Held, Reader, read_log

EVENTS_FILE = "events.jsonl"
STORES_FILE = "stores.jsonl"
BEFORE_FILE = "before.jsonl"
HISTORY_FILES = "client-*.jsonl"


@dataclass(frozen=True, slots=True)
class StoreContent:
    """The final state of one store: records, digests by bucket, and the owners of the buckets in its view."""

    store: str
    records: tuple[Held, ...]
    digests: dict[int, int]
    bucket_owners: dict[int, str]


@dataclass(frozen=True, slots=True)
class Evidence:
    """``before``: the records of the old database, as A exported them before the first call."""

    calls: tuple[Call, ...]
    events: tuple[LogEvent, ...]
    stores: tuple[StoreContent, ...]
    before: tuple[Held, ...] = ()

    def save(self, directory: Path) -> None:
        """Write the evidence beside the histories, which the clients have written."""
        _write(directory / EVENTS_FILE, (asdict(event) for event in self.events))
        _write(directory / BEFORE_FILE, (asdict(held) for held in self.before))
        _write(directory / STORES_FILE, (asdict(content) for content in self.stores))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Load the files of `save` and of the clients. Raises HistoryError, OSError."""
        return cls(
            tuple(read_history(sorted(directory.glob(HISTORY_FILES)))),
            tuple(_event(line) for line in _read(directory / EVENTS_FILE)),
            tuple(_content(line) for line in _read(directory / STORES_FILE)),
            tuple(_held(line) for line in _read(directory / BEFORE_FILE)),
        )


async def gather(
    calls: Sequence[Call],
    readers: Sequence[Reader],
    log: EventLog,
    before: Sequence[Held] = (),
    codes: Codes | None = None,
) -> Evidence:
    """Read everything; the system must be quiet. Events without a right one of the ``codes`` are no evidence.

    Raises grpc.aio.AioRpcError, LogUnavailable, TrialFailed.
    """
    events = await read_log(log, codes)
    stores = [
        StoreContent(
            reader.access.store, tuple(await reader.export()), await reader.digests(), await reader.bucket_owners()
        )
        for reader in readers
    ]
    return Evidence(tuple(calls), tuple(events), tuple(stores), tuple(before))


def _write(path: Path, lines: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def _read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return value[0], value[1]


def _held(line: dict[str, Any]) -> Held:
    return Held(**{**line, "version": _pair(line["version"]), "written": _pair(line["written"])})


def _event(line: dict[str, Any]) -> LogEvent:
    served = tuple(Served(one["request_id"], _pair(one["version"])) for one in line["served"])
    return LogEvent(**{**line, "version": _pair(line["version"]), "served": served})


def _content(line: dict[str, Any]) -> StoreContent:
    return StoreContent(
        line["store"],
        tuple(_held(held) for held in line["records"]),
        {int(bucket): digest for bucket, digest in line["digests"].items()},
        {int(bucket): owner for bucket, owner in line["bucket_owners"].items()},
    )
