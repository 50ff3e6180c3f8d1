"""Pages of a list, and their tokens: the last name and a question hash, the same at both stores and the router."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from hashlib import blake2b

from libs.errors import InvalidField

HASH_BYTES = 8
MAX_TOKEN_CHARACTERS = 512

ACCOUNT = "account"
"""Column of the record's account, in a contract with accounts."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows a list asks for: equal columns, labels that must be there, and deleted ones too or not; and the
    accounts that the caller may see."""

    equals: tuple[tuple[str, str], ...] = ()
    """Column ("state", "account") and value."""
    labels: tuple[tuple[str, str], ...] = ()
    show_deleted: bool = False
    accounts: tuple[str, ...] | None = None
    """Only records of these accounts, by the column ACCOUNT. None: of every account, and records without one."""

    def by_account(self) -> list[Filter]:
        """One filter for each account, which is also in `equals`. Together they match the same rows as this one."""
        wanted = dict(self.equals).get(ACCOUNT)
        rest = tuple(one for one in self.equals if one[0] != ACCOUNT)
        return [
            replace(self, equals=(*rest, (ACCOUNT, account)), accounts=(account,))
            for account in self.accounts or ()
            if wanted in (None, account)
        ]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list: names after `after`, at most `limit`; or just `keys`, whether they match or not."""

    filter: Filter
    after: str = ""
    limit: int = 50
    keys: tuple[str, ...] = ()


def filter_hash(method: str, question: bytes) -> bytes:
    """`question`: the list request in deterministic form, without its page size and token."""
    return blake2b(method.encode() + b"\0" + question, digest_size=HASH_BYTES).digest()


def make_token(last: str, question: bytes) -> str:
    """`question`: the result of `filter_hash`."""
    return base64.urlsafe_b64encode(question + last.encode()).decode().rstrip("=")


def read_token(token: str, question: bytes, field: str = "page_token") -> str:
    """The name after which the page begins; "" without a token. Raises InvalidField.

    The name need not be valid for new records: a page may end at a name that no client could create today.
    """
    if not token:
        return ""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidField(field, f"{len(token)} characters", f"at most {MAX_TOKEN_CHARACTERS} characters")
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        last = data[HASH_BYTES:].decode()
    except ValueError:
        # The token is not base64, not ASCII or not UTF-8.
        data, last = b"", ""
    if not last or "\0" in last:
        raise InvalidField(field, token, "give back next_page_token of an earlier answer unchanged")
    if data[:HASH_BYTES] != question:
        raise InvalidField(field, token, "the token belongs to a list with another filter")
    return last
