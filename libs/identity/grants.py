"""Accounts and roles from files and from a token's claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.identity.principal import Principal, Role

ACCOUNT_BYTES = 4096
"""Maximum size of all accounts of a principal. They travel in the metadata of calls, which is limited too."""

_ROLES = {role.name.lower(): role for role in Role}


def read_grant(subject: str, entry: Mapping[str, Any]) -> Principal:
    """The principal with the accounts and roles of a file's entry. Raises ValueError."""
    accounts, roles = texts(entry, "accounts"), texts(entry, "roles")
    if unknown := [role for role in roles if role not in _ROLES]:
        raise ValueError(f"roles: {unknown[0]!r} is not valid: there are {', '.join(_ROLES)}")
    if too_large(accounts):
        raise ValueError(f"accounts: they are larger than {ACCOUNT_BYTES} bytes")
    return Principal(subject, frozenset(accounts), frozenset(_ROLES[role] for role in roles))


def texts(entry: Mapping[str, Any], name: str) -> list[str]:
    """The entry's list of texts; empty without one. Raises ValueError."""
    found = entry.get(name, [])
    if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
        raise ValueError(f"{name}: give a list of texts")
    return found


def too_large(accounts: list[str]) -> bool:
    return sum(len(account.encode(errors="replace")) for account in accounts) + 4 * len(accounts) > ACCOUNT_BYTES


def claim(claims: Mapping[str, Any], name: str) -> list[str]:
    """The words of a claim: a list of texts, or a text with spaces between the words. Other forms grant nothing.

    `name`: the claim's name, or the path to a nested claim with dots: realm_access.roles.
    """
    found: Any = claims.get(name)
    if found is None and "." in name:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, str):
        found = found.split()
    if not isinstance(found, list):
        return []
    return [text for text in found if isinstance(text, str) and text and _is_utf8(text)]


def _is_utf8(text: str) -> bool:
    """JSON can hold half of a surrogate pair, which no message and no database can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def known_roles(names: list[str]) -> frozenset[Role]:
    """The roles among the names. A token may have roles of other systems too."""
    return frozenset(_ROLES[name] for name in names if name in _ROLES)
