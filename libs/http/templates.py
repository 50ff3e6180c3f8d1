"""Path templates of `google.api.http`: matching of paths, and field values in a path.

Source: https://github.com/googleapis/googleapis/blob/master/google/api/http.proto, "Path template syntax". The verb of
a path begins at the last ":" of its last segment, as sent; a ":" in a name is encoded as %3A.

This is stricter than the grammar in one point. An encoded slash in a value of several segments would stay "%2F", so
that two names would look alike, and many clients remove "." and ".." from paths. Such names are refused; callers reach
them over gRPC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from libs.errors import BatonError, InvalidField

TOKEN = re.compile(r"\{([a-z0-9_.]+)(?:=([^{}]+))?\}")
"""A variable: the path of its field, and its segments if the template has them."""
_LITERAL = re.compile(r"[A-Za-z0-9._~-]+")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SEGMENTS = {"*": "[^/]+", "**": ".+"}


class UnfitTemplate(BatonError):
    """The path template is not valid."""


@dataclass(frozen=True, slots=True)
class Template:
    text: str
    pattern: re.Pattern[str]
    """Pattern of a path without its verb."""
    verb: str
    """Verb: "undelete" in "/v1/{name=sandboxes/*}:undelete", or ""."""
    fields: tuple[str, ...]
    """Field paths, in the order of the pattern's groups."""

    @classmethod
    def parse(cls, text: str) -> Template:
        path, verb = split_verb(text, behind=text.rfind("}"))
        fields: list[str] = []
        parts: list[str] = []
        place = 0
        for found in TOKEN.finditer(path):
            parts.append(_segments(path[place : found.start()], text))
            fields.append(found[1])
            parts.append(f"({_segments(found[2] or '*', text)})")
            place = found.end()
        parts.append(_segments(path[place:], text))
        if not path.startswith("/"):
            raise UnfitTemplate(f"the path template {text!r} does not begin with /")
        return cls(text, re.compile("".join(parts)), verb, tuple(fields))

    def match(self, path: str) -> tuple[str, ...] | None:
        """Field values, still encoded; None if the path, without its verb, does not match."""
        found = self.pattern.fullmatch(path)
        return found.groups() if found is not None else None


def split_verb(path: str, behind: int = -1) -> tuple[str, str]:
    """The path without its verb, and the verb. Only a ":" after the index `behind` begins a verb, and not at the
    end."""
    place = path.rfind(":")
    if place <= max(behind, path.rfind("/")) or place == len(path) - 1:
        return path, ""
    return path[:place], path[place + 1 :]


def decode(field: str, value: str) -> str:
    """Decode a value of a path. Raises InvalidField."""
    if _ESCAPE.search(value):
        raise InvalidField(field, value, "a % is followed by two hexadecimal digits; write a % itself as %25")
    if "%2f" in value.lower():
        raise InvalidField(field, value, "a name without an encoded slash; call over gRPC for a name that has one")
    try:
        text = unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise InvalidField(field, value, "percent-encoded UTF-8") from None
    if {".", ".."} & set(text.split("/")):
        raise InvalidField(field, value, 'a path without "." and ".."; call over gRPC for a name that has them')
    return text


def _segments(text: str, template: str) -> str:
    """Convert to a regular expression. Raises UnfitTemplate."""
    out = []
    for segment in text.split("/"):
        if segment and segment not in _SEGMENTS and not _LITERAL.fullmatch(segment):
            raise UnfitTemplate(f"the path template {template!r} has an invalid segment {segment!r}")
        out.append(_SEGMENTS.get(segment) or re.escape(segment))
    return "/".join(out)
