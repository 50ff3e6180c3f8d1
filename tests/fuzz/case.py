"""One request of the fuzz, and the corpus: cases that failed once, or that reach a rare branch."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

CORPUS = Path(__file__).with_name("corpus")

GRPC, HTTP, RAW = "grpc", "http", "raw"


@dataclass(frozen=True, slots=True)
class Case:
    """A request to one listener.

    ``kind``: gRPC, HTTP, or RAW (bytes written to an HTTP connection). ``target``: "/package.Service/Method" or
    "POST /v1/sandboxes?filter=x"; empty for RAW.
    """

    listener: str
    kind: str
    target: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    """Deadline that the caller sends. 0: a long one."""

    def dump(self) -> dict[str, Any]:
        return {
            "listener": self.listener,
            "kind": self.kind,
            "target": self.target,
            "body": b64encode(self.body).decode(),
            "headers": [list(one) for one in self.headers],
            "seconds": self.seconds,
        }

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["listener"],
            data["kind"],
            data["target"],
            b64decode(data["body"]),
            tuple((name, value) for name, value in data["headers"]),
            data["seconds"],
        )


def load_corpus(folder: Path = CORPUS) -> Sequence[Case]:
    """All kept cases, by file name. A file holds a case, and under "why" the reason that it is kept."""
    return [Case.parse(json.loads(path.read_text())["case"]) for path in sorted(folder.glob("*.json"))]


def keep(case: Case, name: str, why: str, folder: Path = CORPUS) -> Path:
    """Write a case to the corpus."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"why": why, "case": case.dump()}, indent=1) + "\n")
    return path
