"""Restriction of calls to the accounts of their callers (see `libs.contract.accounts`)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from libs.contract.accounts import AccountField, Scope, decide_hidden
from libs.contract.descriptors import Contract, Method
from libs.contract.operations import List, Write
from libs.identity.principal import current_principal
from libs.ownership.model import Answered, Changed, Decide, Found, Store
from libs.ownership.rules import Change


def scope_of(contract: Contract) -> Scope | None:
    """The records that the running call's caller may reach; None if there is nothing to check."""
    if contract.account is None:
        return None
    principal = current_principal()
    return Scope.of(contract.account, principal.reachable, anonymous=principal.is_anonymous)


def limited(wanted: List, scope: Scope | None) -> List:
    """The list of the records that the caller may reach."""
    if scope is None:
        return wanted
    return replace(wanted, page=replace(wanted.page, filter=scope.filtered(wanted.page.filter)))


def change_of(method: Method, write: Write, scope: Scope | None) -> Change:
    """The write's change, as far as the caller may make it."""
    return write.change if scope is None else scope.limited(write.change, partial(_account_field, method, scope.field))


def within(scope: Scope | None, me: Store, change: Change, decide: Decide) -> Decide:
    """The decision for the caller: `decide` decides only on records that it may reach. `change`: see `change_of`; also
    of a call that only checks."""
    if scope is None:
        return decide

    def scoped(found: Found) -> Changed | Answered:
        shown = scope.shown(found)
        return decide(found) if shown is found else decide_hidden(shown, me, change)

    return scoped


def _account_field(method: Method, account: AccountField) -> str:
    """The caller's name of the account's field: "sandbox.account"."""
    for field in method.request_class.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.full_name == account.record:
            return f"{field.name}.{account.name}"
    return account.name
