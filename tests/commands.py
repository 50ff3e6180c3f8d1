"""Runs `baton` in a process of its own, as users do.

It does not run in a thread beside the router under test: a blocking client and an asyncio server of gRPC in one process
is a combination that no user runs, and its faults are not the product's. The processes are forked from one that has
loaded the program but never used it, so a command costs milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

from typer.testing import CliRunner

from services.router.cli.app import tree
from services.router.cli.failure import Exit

ACTOR = "ann@host"
LONGEST_SECONDS = 120.0
_ON_DEMAND = (
    "pydantic.types",
    "rich.progress",
    "services.router.cli.client",
    "services.router.cli.show",
    "services.router.cli.views",
    "typer._adapters",
)
"""Modules that most commands import when they run."""

_app = tree()
_context = multiprocessing.get_context("forkserver")


class Router(Protocol):
    @property
    def address(self) -> str:
        """Address of the control API."""
        ...


class Result(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str
    exception: str
    """The uncaught exception, in words."""


def start() -> None:
    """Start the process that others are forked from. It happens before the first test, so that it inherits no
    leftovers."""
    _context.set_forkserver_preload(["pytest", __name__, *_ON_DEMAND])
    forkserver.ensure_running()


async def baton(router: Router, *arguments: str) -> Result:
    """Run a command. Raises TimeoutError."""
    return await asyncio.to_thread(_run, [*arguments, "--address", router.address], {"BATON_ACTOR": ACTOR})


async def answer(router: Router, *arguments: str, code: Exit = Exit.OK) -> Any:
    """Output of a command with `-o json`. Checks its exit code."""
    result = await baton(router, *arguments, "-o", "json")
    assert result.exit_code == code, (result.stderr, result.exception)
    return json.loads(result.stdout)


def _run(words: Sequence[str], environment: Mapping[str, str]) -> Result:
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_invoke, args=(theirs, words, environment))
    with ours:
        process.start()
        theirs.close()
        try:
            if not ours.poll(LONGEST_SECONDS):
                raise TimeoutError(f"{words} has not ended after {LONGEST_SECONDS:.0f} s")
            found: Result = ours.recv()
        finally:
            process.terminate()
            process.join()
            process.close()
    return found


def _invoke(answers: Connection, words: Sequence[str], environment: Mapping[str, str]) -> None:
    result = CliRunner().invoke(_app, words, env=environment)
    trouble = "" if result.exception is None else repr(result.exception)
    answers.send(Result(result.exit_code, result.stdout, result.stderr, trouble))
