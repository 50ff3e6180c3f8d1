"""Accounts: which records a caller may reach. Pure functions.

The contract names the field of a record that holds its account (option `baton.options.v1.account`). A caller without
the role admin reaches only records of its own accounts. The rest is one rule, and its exception:

    A record of another account is answered as a record that does not exist. Only its name stays taken.

* The account of a name never changes while callers have identities. The field is immutable, and a deleted record keeps
  its account: who may undelete a record must not lose it to another account. So each copy of a record, of any version
  and at either store, shows whether it is hidden from a caller, and a view of one account never loses a record to
  another one. Only anonymous callers may give the name of a deleted record to another account, as they could before.
* A hidden record is replaced by the state that its name would have without it (`Scope.shown`), before ownership, served
  requests, etags, leases and masks are looked at. The same code then gives the same answer, text and details included.
  Ownership counts as if there were no record: the owner of the bucket answers.
* A call that would create the record is the exception (`decide_hidden`): the name is taken.
* A record without an account, and one that this program cannot read, is for admins. Another program may be able to read
  it. So its owner and version still count, and it is replaced by a stub: a row of a record that was never created.
* A stub has no account. It is the same to all callers.
* Lists and watches ask the store for the rows of the caller's accounts only (`Filter.accounts`), so that a page never
  ends at the name of another account's record.

Calls of anonymous callers, and of a contract without accounts, have no scope and skip all of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from google.protobuf.message import DecodeError, Message

from libs.contract.pages import Filter
from libs.errors import BatonError
from libs.ownership.errors import NotOwner
from libs.ownership.model import Answered, Found, Row, Store, Version
from libs.ownership.rules import Change, Resource, may_change, next_version

MAX_CHARACTERS = 64
"""A record with a longer account, or one with a NUL character, is for admins: not every index can hold it. Only an old
program can have written one."""
_MARK_BYTES = 8


class AccountNotYours(BatonError):
    """The caller may not create records of this account."""

    code = "PERMISSION_DENIED"
    reason = "ACCOUNT_NOT_YOURS"

    def __init__(self, field_name: str, account: str) -> None:
        super().__init__(
            f"{field_name}: {account!r} is not one of the caller's accounts: give one of them, or ask for access",
            field=field_name,
            account=account,
        )


class NameTaken(BatonError):
    """The name belongs to another account: choose another one."""

    code = "ALREADY_EXISTS"
    reason = "NAME_TAKEN"

    def __init__(self, key: str) -> None:
        super().__init__(f"name: {key!r} is taken: choose another name", field="name", name=key)


@dataclass(frozen=True, slots=True)
class AccountField:
    """The field that holds a record's account."""

    record: str
    """Full name of the record's message."""
    name: str
    forms: Mapping[int, tuple[type[Message], str]] = field(repr=False)
    """The message and its field, by schema version."""
    newest: int = 0
    """The newest schema version; 0 if the contract has no versions."""

    def of(self, payload: bytes, schema_version: int) -> str:
        """The account in a record's content; "" if there is none or this program cannot read it.

        The whole content is parsed: content that cannot be read must have no account.
        """
        form = self.forms.get((schema_version or self.newest) if self.newest else 0)
        if form is None:
            return ""
        kind, name = form
        try:
            account: str = getattr(kind.FromString(payload), name)
        except DecodeError:
            return ""
        return account if may_be_listed(account) else ""

    def of_new(self, request: Message) -> str | None:
        """The account of the record that a request of the newest schema version has; None if it has no record."""
        for part, value in request.ListFields():
            kind = part.message_type
            if kind is not None and not part.is_repeated and kind.full_name == self.record:
                account: str = getattr(value, self.name)
                return account if may_be_listed(account) else ""
        return None


def may_be_listed(account: str) -> bool:
    return 0 < len(account) <= MAX_CHARACTERS and "\0" not in account


@dataclass(frozen=True, slots=True)
class Scope:
    """The records that the caller of one call may reach."""

    field: AccountField
    accounts: frozenset[str] | None
    """None: all of them, without the right to give a name to another account."""

    @classmethod
    def of(cls, account: AccountField, accounts: frozenset[str] | None, *, anonymous: bool) -> Scope | None:
        """None: the caller has no restriction at all."""
        return None if accounts is None and anonymous else cls(account, accounts)

    @property
    def is_restricted(self) -> bool:
        return self.accounts is not None

    @property
    def mark(self) -> str:
        """Part of a watch's token: a view of these accounts is continued by a caller of the same accounts only."""
        if self.accounts is None:
            return ""
        return blake2b("\0".join(sorted(self.accounts)).encode(errors="replace"), digest_size=_MARK_BYTES).hexdigest()

    def hides(self, row: Row) -> bool:
        """Whether the caller must not learn that the record exists. A stub is no record."""
        return self.accounts is not None and bool(row.payload) and not self._has(self._account(row))

    def shown(self, found: Found) -> Found:
        """The state of the key as the caller may see it. It is `found` itself if that hides nothing."""
        row = found.row
        if row is None or not self.hides(row):
            return found
        if self._account(row):
            return Found(found.key, None, found.bucket_owner)
        return Found(found.key, replace(row, live=False, payload=b"", schema_version=0), found.bucket_owner)

    def filtered(self, wanted: Filter) -> Filter:
        if self.accounts is None:
            return wanted
        return replace(wanted, accounts=tuple(sorted(filter(may_be_listed, self.accounts))))

    def limited(self, change: Change, field_name: Callable[[], str]) -> Change:
        """The change, without the right to make a record of a foreign account or to give a name to another account.

        `field_name`: returns the caller's name of the account's field, for the error. Raises AccountNotYours,
        NameTaken.
        """

        def check(row: Row | None, version: Version) -> Resource | Answered:
            after = change(row, version)
            if isinstance(after, Resource) and after.payload:
                account = self.field.of(after.payload, after.schema_version)
                if not self._has(account):
                    raise AccountNotYours(field_name(), account)
                if row is not None and row.payload and self._account(row) not in ("", account):
                    raise NameTaken(row.key)
            return after

        return check

    def _has(self, account: str) -> bool:
        return self.accounts is None or (account != "" and account in self.accounts)

    def _account(self, row: Row) -> str:
        return self.field.of(row.payload, row.schema_version)


def decide_hidden(shown: Found, me: Store, change: Change) -> Answered:
    """Decide on a write of a hidden record. It changes nothing.

    `shown`: the result of `Scope.shown`. `change`: limited to the caller's accounts. Raises NotOwner, NameTaken, and
    the errors of the change.
    """
    if not may_change(shown, me):
        raise NotOwner.of(shown, hidden=shown.row is None)
    version = next_version(shown)
    after = change(shown.row, version)
    if isinstance(after, Answered):
        return after
    if after.live:
        raise NameTaken(shown.key)
    return Answered(after.payload if after.answer is None else after.answer, version)
