"""Slots in use, by name. A name without slots is not kept: strangers choose some of them."""

from __future__ import annotations


def take_slot(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def release_slot(counts: dict[str, int], name: str) -> None:
    left = counts[name] - 1
    if left:
        counts[name] = left
    else:
        del counts[name]
