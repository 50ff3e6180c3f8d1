"""Patterns of record names: a whole name, or the beginning of a name with `*` at the end.

Whatever the pattern, one comparison with the beginning of a name decides, and in the index on names the matches are one
range.
"""

from __future__ import annotations

from libs.errors import InvalidField

MAX_PATTERN_BYTES = 256

STAR = "*"

_SURROGATES = range(0xD800, 0xE000)
_LAST = 0x10FFFF


def check_pattern(field: str, pattern: str) -> None:
    """Raises InvalidField."""
    size = len(pattern.encode(errors="replace"))
    if not pattern or size > MAX_PATTERN_BYTES:
        raise InvalidField(field, pattern, f"a pattern of 1 to {MAX_PATTERN_BYTES} bytes")
    if STAR in pattern[:-1] or not pattern.isprintable():
        raise InvalidField(field, pattern, "a name, or the beginning of names with one * at the end")


def matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith(STAR) else name == pattern


def bounds(pattern: str) -> tuple[str, str]:
    """The first string that may match, and the first one after it that is beyond all matches, in the order of bytes;
    "" if there is none."""
    if not pattern.endswith(STAR):
        return pattern, f"{pattern}\x01"
    first = pattern[:-1]
    beyond = first
    while beyond:
        number = ord(beyond[-1]) + 1
        if number <= _LAST:
            return first, beyond[:-1] + chr(_SURROGATES.stop if number in _SURROGATES else number)
        beyond = beyond[:-1]
    return first, ""
