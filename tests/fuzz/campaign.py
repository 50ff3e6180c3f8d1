"""A run of the fuzz: cases to every listener of a system of real processes, and the checks behind them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from libs.proving.trial.world import World
from tests.fuzz.case import RAW, Case
from tests.fuzz.making import LISTENERS, make_case
from tests.fuzz.sending import Address, Sender, open_sender

AT_ONCE = 4
"""Cases at once at each listener."""
MINIMISE_ATTEMPTS, MINIMISE_SECONDS = 150, 60.0

Progress = Callable[[int, int, float], None]
"""Reports cases done, all cases, and seconds since the begin."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A case with a wrong answer, and the smallest case found that has one too."""

    case: Case
    problem: str
    number: int
    smallest: Case

    def __str__(self) -> str:
        one = self.smallest
        shown = f"{one.target} {dict(one.headers)} {one.body[:200]!r} ({len(one.body)} bytes)"
        return f"case {self.number} of {one.listener}: {self.problem}\n    smallest: {shown}"


@dataclass(slots=True)
class Report:
    seed: int
    cases: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        found = "\n".join(map(str, self.failures))
        return f"seed {self.seed}: {len(self.failures)} of {self.cases} cases failed in {self.seconds:.0f} s\n{found}"


def addresses_of(world: World) -> dict[str, Address]:
    """Every listener of the system."""
    nodes = {"a": world.nodes["a"], "b": world.nodes["b-1"], "router": world.nodes["router-1"]}
    found = {}
    for name, node in nodes.items():
        found[f"public {name}"] = Address(node.public)
        found[f"{'control' if name == 'router' else 'internal'} {name}"] = Address(node.private, world.token)
        found[f"http {name}"] = Address(node.http)
    return found


async def run(
    sender: Sender, seed: int, counts: dict[str, int], kept: Sequence[Case] = (), progress: Progress | None = None
) -> Report:
    """Send the kept cases, then the seed's. ``counts``: number of cases by listener."""
    report = Report(seed)
    began = time.monotonic()
    wanted = sum(counts.values()) + len(kept)

    async def work(source: Iterator[tuple[int, Case]]) -> None:
        for number, case in source:
            problem = await sender.send(case)
            report.cases += 1
            if problem:
                report.failures.append(Failure(case, problem, number, await _smallest(sender, case)))
            if progress is not None:
                progress(report.cases, wanted, time.monotonic() - began)

    await work(iter(enumerate(kept)))
    async with asyncio.TaskGroup() as group:
        for listener, count in counts.items():
            source = _numbered(seed, listener, count)
            for _ in range(AT_ONCE):
                group.create_task(work(source))
    report.seconds = time.monotonic() - began
    return report


def _numbered(seed: int, listener: str, count: int) -> Iterator[tuple[int, Case]]:
    for number in range(count):
        yield number, make_case(seed, listener, number)


async def _smallest(sender: Sender, case: Case) -> Case:
    """A smaller case that fails too: fewer headers, then a shorter body, by halves."""
    attempts, end = 0, time.monotonic() + MINIMISE_SECONDS

    async def fails(smaller: Case) -> bool:
        nonlocal attempts
        attempts += 1
        return attempts <= MINIMISE_ATTEMPTS and time.monotonic() < end and bool(await sender.send(smaller))

    if not await fails(case):
        # It takes more than this case: other calls, or the state that it met.
        return case
    for header in case.headers:
        smaller = replace(case, headers=tuple(one for one in case.headers if one != header))
        if await fails(smaller):
            case = smaller
    size = len(case.body) // 2
    while size and attempts < MINIMISE_ATTEMPTS and case.kind != RAW:
        start = 0
        while start < len(case.body):
            smaller = replace(case, body=case.body[:start] + case.body[start + size :])
            if await fails(smaller):
                case = smaller
            else:
                start += size
        size //= 2
    return case


def spread(count: int, listeners: Sequence[str] = LISTENERS) -> dict[str, int]:
    """The same number of cases for each listener, at least one."""
    return {listener: max(1, count // len(listeners)) for listener in listeners}


__all__ = ["LISTENERS", "Address", "Report", "Sender", "addresses_of", "open_sender", "run", "spread"]
