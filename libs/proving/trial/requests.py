"""Requests of a trial's clients: calls of the sandbox contract on a few hot names and on fresh ones.

Every write carries a unique value in an annotation, and a request id of its own. Names of the old database may be among
the hot ones; a record that no client has written yet reads as `INITIAL_VALUE`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from libs.pb.sandbox.v1.sandbox_pb2 import Sandbox, SandboxSpec
from libs.pb.sandbox.v1.sandbox_service_pb2 import (
    AcquireLeaseRequest,
    CreateSandboxRequest,
    DeleteSandboxRequest,
    GetSandboxRequest,
    ListSandboxesRequest,
    ReleaseLeaseRequest,
    RenewLeaseRequest,
    UndeleteSandboxRequest,
    UpdateSandboxRequest,
)
from libs.proving.history.history import LEASES, Lease
from libs.rpc.caller import make_id

SERVICE = "sandbox.v1.SandboxService"
COLLECTION = "sandboxes/"
VALUE_ANNOTATION = "trial-value"
INITIAL_VALUE = "initial"
ACCOUNT = "trial"

_HOT_LABEL = ("trial", "hot")
_FRESH_NAMES = 200
_OBSERVED_NAMES = 4
"""Number of names that are recorded per list, so that lists do not dominate the history."""
_SHARE_OF_FRESH = 0.25
_RPCS = {
    "create": "CreateSandbox",
    "get": "GetSandbox",
    "list": "ListSandboxes",
    "update": "UpdateSandbox",
    "delete": "DeleteSandbox",
    "undelete": "UndeleteSandbox",
    "acquire": "AcquireLease",
    "renew": "RenewLease",
    "release": "ReleaseLease",
}
_WEIGHTS = {
    "live": (("get", 53), ("update", 34), ("list", 5), ("acquire", 4), ("delete", 3), ("create", 1)),
    "held": (("get", 30), ("update", 30), ("renew", 15), ("release", 15), ("acquire", 5), ("list", 3), ("delete", 2)),
    "gone": (("get", 25), ("undelete", 35), ("create", 35), ("update", 5)),
    "absent": (("get", 15), ("create", 80), ("update", 5)),
}
"""Weights by the clients' belief about a name. A wrong belief only leads to one more refusal to observe. "held": live,
and this client has had its lease."""
_TTLS_SECONDS = (1, 2, 20)
"""Some leases expire during a trial, others are released."""
_SHARE_OF_FENCED = 0.7
"""Share of updates with the token, by a client that has had the lease."""


@dataclass(slots=True)
class Request:
    """One request of a client, sent until its outcome is known. ``names``: names that a list's answer is recorded
    for."""

    method: str
    key: str
    message: bytes
    request_id: str | None = None
    value: str | None = None
    names: tuple[str, ...] = ()
    lease: Lease | None = None

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{_RPCS[self.method]}"

    @property
    def is_read(self) -> bool:
        return self.request_id is None


def value_of(sandbox: Sandbox) -> str:
    """The value of the last write."""
    return sandbox.annotations.get(VALUE_ANNOTATION, INITIAL_VALUE)


def revision_of(sandbox: Sandbox) -> tuple[int, int] | None:
    """Term and revision of the last write, from the etag."""
    term, _, revision = sandbox.etag.strip('"').partition("-")
    return (int(term), int(revision)) if term.isdigit() and revision.isdigit() else None


@dataclass(slots=True)
class Names:
    """The names that all clients of one process use, and the beliefs about them."""

    made: Sequence[str]
    """Hot names that the clients create; they carry a label."""
    old: Sequence[str] = ()
    """Hot names that exist before, live."""
    fresh: deque[str] = field(default_factory=lambda: deque(maxlen=_FRESH_NAMES))
    beliefs: dict[str, str] = field(default_factory=dict)

    @property
    def hot(self) -> tuple[str, ...]:
        return (*self.made, *self.old)

    def belief(self, name: str) -> str:
        return self.beliefs.get(name, "live" if name in self.old else "absent")

    def learn(self, method: str, name: str, *, done: bool, not_found: bool) -> None:
        """Update the belief from an answer. An undelete of a name that never existed fails like a read of a deleted
        one."""
        if done and method in ("create", "update", "undelete", "get"):
            self.beliefs[name] = "live"
        elif done and method == "delete":
            self.beliefs[name] = "gone"
        elif not_found:
            never = method == "undelete" or self.belief(name) == "absent"
            self.beliefs[name] = "absent" if never else "gone"


class Mix:
    """One client's choice of requests. The same seed and answers give the same requests."""

    def __init__(self, client: int, names: Names, fresh_share: float, seed: int) -> None:
        self._client = client
        self._names = names
        self._fresh_share = fresh_share
        self._random = random.Random(f"{seed}/{client}")
        self._values = 0
        self.etags: dict[str, str] = {}
        """The etag that this client saw last, by name."""
        self.tokens: dict[str, str] = {}
        """Token of the lease that this client was granted last, by name, until it is reported lost."""

    def next(self) -> Request:
        if self._random.random() < self._fresh_share:
            return self._fresh()
        name = self._random.choice(self._names.hot)
        belief = self._names.belief(name)
        kind = "held" if belief == "live" and name in self.tokens else belief
        methods, weights = zip(*_WEIGHTS[kind], strict=True)
        return self._on(self._random.choices(methods, weights)[0], name)

    def next_read(self) -> Request:
        """A read of a hot name, or of several."""
        return self._on(self._random.choices(("get", "list"), (10, 1))[0], self._random.choice(self._names.hot))

    def _fresh(self) -> Request:
        if not self._names.fresh or self._random.random() < _SHARE_OF_FRESH:
            return self._create_fresh()
        name = self._random.choice(self._names.fresh)
        methods = ("get", "update", "delete") if self._names.belief(name) == "live" else ("get", "undelete")
        return self._on(self._random.choices(methods, (8, 8, 1)[: len(methods)])[0], name)

    def _on(self, method: str, name: str) -> Request:
        if method == "list":
            return self._list()
        if method == "get":
            return Request(method, name, _bytes(GetSandboxRequest(name=name)))
        request_id = self._request_id()
        if method == "create":
            return self._create(name, name.removeprefix(COLLECTION), request_id)
        if method == "update":
            return self._update(name, request_id)
        if method in LEASES:
            return self._lease(method, name, request_id)
        kind = DeleteSandboxRequest if method == "delete" else UndeleteSandboxRequest
        return Request(method, name, _bytes(kind(name=name, request_id=request_id)), request_id)

    def hold(self, request: Request, sandbox: Sandbox) -> None:
        """Record the lease in an answer to this client."""
        if request.method == "acquire":
            self.tokens[request.key] = sandbox.lease.token
        elif request.method == "release":
            self.tokens.pop(request.key, None)

    def _lease(self, method: str, name: str, request_id: str) -> Request:
        holder, token = f"client-{self._client}", self.tokens.get(name, "")
        ttl = Duration(seconds=self._random.choice(_TTLS_SECONDS))
        message: Message
        if method == "acquire":
            message = AcquireLeaseRequest(name=name, holder=holder, ttl=ttl, request_id=request_id)
            lease = Lease(holder, ttl.seconds)
        elif method == "renew":
            message = RenewLeaseRequest(name=name, token=token, ttl=ttl, request_id=request_id)
            lease = Lease(holder, ttl.seconds, token)
        else:
            message = ReleaseLeaseRequest(name=name, token=token, request_id=request_id)
            lease = Lease(holder, token=token)
        return Request(method, name, _bytes(message), request_id, lease=lease)

    def _create_fresh(self) -> Request:
        """Create a fresh name, half of them without an id: the router derives it from the request id, the same for each
        retry."""
        request_id = self._request_id()
        if self._random.random() < 0.5:
            made = make_id(request_id)
            request = self._create(COLLECTION + made, "", request_id)
        else:
            given = f"fresh-{request_id[:13]}"
            request = self._create(COLLECTION + given, given, request_id)
        self._names.fresh.append(request.key)
        return request

    def _create(self, name: str, given: str, request_id: str) -> Request:
        sandbox = Sandbox(account=ACCOUNT, spec=SandboxSpec(image="trial/image:1", cpu_millis=500, memory_mib=256))
        if name in self._names.made:
            sandbox.labels[_HOT_LABEL[0]] = _HOT_LABEL[1]
        value = self._new_value()
        sandbox.annotations[VALUE_ANNOTATION] = value
        message = CreateSandboxRequest(sandbox=sandbox, sandbox_id=given, request_id=request_id)
        return Request("create", name, _bytes(message), request_id, value)

    def _update(self, name: str, request_id: str) -> Request:
        """A fifth of the updates is conditional, if this client has seen the record. Most updates by the holder of the
        lease carry its token."""
        value = self._new_value()
        sandbox = Sandbox(name=name, annotations={VALUE_ANNOTATION: value})
        if self._random.random() < 0.2:
            sandbox.etag = self.etags.get(name, "")
        mask = FieldMask(paths=["annotations"])
        message = UpdateSandboxRequest(sandbox=sandbox, update_mask=mask, request_id=request_id)
        if name in self.tokens and self._random.random() < _SHARE_OF_FENCED:
            message.lease_token = self.tokens[name]
        lease = Lease(token=message.lease_token) if message.lease_token else None
        return Request("update", name, _bytes(message), request_id, value, lease=lease)

    def _list(self) -> Request:
        """List by the label of all hot names that the clients create, or list the first page."""
        if self._names.old and self._random.random() < 0.5:
            names, message = self._names.old, ListSandboxesRequest(page_size=50)
        else:
            text = f'labels.{_HOT_LABEL[0]} = "{_HOT_LABEL[1]}"'
            names, message = self._names.made, ListSandboxesRequest(page_size=500, filter=text)
        observed = tuple(self._random.sample(names, min(_OBSERVED_NAMES, len(names))))
        return Request("list", "", _bytes(message), names=observed)

    def _new_value(self) -> str:
        self._values += 1
        return f"{self._client}.{self._values}"

    def _request_id(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))


def _bytes(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)
