"""Values as text for people: numbers without exponents, and foreign text without terminal control characters. TOML."""

from __future__ import annotations

import math
import re
import tomllib
import unicodedata
from decimal import Decimal
from typing import Any

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: controls (C0, C1), formats (bidi, zero width), surrogates, line and paragraph separators."""

_DIGITS = 3

_IN_ADDRESS = re.compile(r"(://[^:/@\s]*):\S*@")
_IN_ONE_ADDRESS = re.compile(r"(://[^:/@\s]*):.*@", re.DOTALL)
"""A password ends at the last @: a person may have typed any character before it."""
_NAMED = re.compile(
    r"(?i)((?<![a-z])(?:[a-z_]*password|passwd|pwd|secret|token|api_?key)\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s&;,'\"]+)"
)


def plain(value: float, decimals: int = 6) -> str:
    """The number in fixed notation: whole from 100 on, three significant digits below, and at most `decimals` places.

    >>> [plain(value) for value in (1e7, 100.0, 2.5, 2.9273e-05)]
    ['10000000', '100', '2.5', '0.000029']
    """
    if not math.isfinite(value):
        return str(value)
    places = decimals
    if value:
        places = min(decimals, max(0, _DIGITS - 1 - math.floor(math.log10(abs(value)))))
    text = f"{Decimal(repr(value)):.{places}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def visible(text: str, *, keep: str = "\n") -> str:
    """The text with an escape for every character that controls a terminal or reorders the text around it.

    `keep`: characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in keep or unicodedata.category(one) not in _UNSAFE else _escape(one) for one in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def parse_toml(text: str) -> dict[str, Any]:
    """Raises ValueError if the text is not TOML, or is nested deeper than the parser can follow."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def hide_password(text: str, *, one_address: bool = False) -> str:
    """The text with the password of each address in it, and each "password=…", replaced.

    `one_address`: the text is one address, whose password may have spaces.

    >>> [hide_password(text) for text in ("postgresql://me:a@b@host/x", "host=h password=abc user=me")]
    ['postgresql://me:***@host/x', 'host=h password=*** user=me']
    """
    if "@" in text:
        text = (_IN_ONE_ADDRESS if one_address else _IN_ADDRESS).sub(r"\1:***@", text)
    return _NAMED.sub(r"\1***", text) if "=" in text else text
