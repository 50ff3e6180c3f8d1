# ruff: noqa
"""Generated from the contract by `make protos`. Do not edit."""

from __future__ import annotations
from collections.abc import AsyncGenerator, Generator
from baton_client.calls import AsyncCaller, Caller, Metadata, Method, Received
from baton_client.messages import (
    AcquireLeaseRequest,
    CreateSandboxRequest,
    DeleteSandboxRequest,
    GetSandboxRequest,
    ListSandboxesRequest,
    ListSandboxesResponse,
    ReleaseLeaseRequest,
    RenewLeaseRequest,
    Sandbox,
    UndeleteSandboxRequest,
    UpdateSandboxRequest,
    WatchSandboxesRequest,
    WatchSandboxesResponse,
)

SCHEMA = ("sandbox-schema-version", "2")
"""The metadata that names the schema version of these messages."""
_CREATE_SANDBOX = Method(
    "/sandbox.v1.SandboxService/CreateSandbox", Sandbox, request_id="request_id", key="sandboxes/{sandbox_id}"
)
_GET_SANDBOX = Method("/sandbox.v1.SandboxService/GetSandbox", Sandbox, key="{name}")
_LIST_SANDBOXES = Method("/sandbox.v1.SandboxService/ListSandboxes", ListSandboxesResponse)
_WATCH_SANDBOXES = Method(
    "/sandbox.v1.SandboxService/WatchSandboxes", WatchSandboxesResponse, resume_token="resume_token"
)
_UPDATE_SANDBOX = Method(
    "/sandbox.v1.SandboxService/UpdateSandbox", Sandbox, request_id="request_id", key="{sandbox.name}"
)
_DELETE_SANDBOX = Method("/sandbox.v1.SandboxService/DeleteSandbox", Sandbox, request_id="request_id", key="{name}")
_UNDELETE_SANDBOX = Method("/sandbox.v1.SandboxService/UndeleteSandbox", Sandbox, request_id="request_id", key="{name}")
_ACQUIRE_LEASE = Method("/sandbox.v1.SandboxService/AcquireLease", Sandbox, request_id="request_id", key="{name}")
_RENEW_LEASE = Method("/sandbox.v1.SandboxService/RenewLease", Sandbox, request_id="request_id", key="{name}")
_RELEASE_LEASE = Method("/sandbox.v1.SandboxService/ReleaseLease", Sandbox, request_id="request_id", key="{name}")
KEYS = {
    "/sandbox.v1.SandboxService/CreateSandbox": "sandboxes/{sandbox_id}",
    "/sandbox.v1.SandboxService/GetSandbox": "{name}",
    "/sandbox.v1.SandboxService/UpdateSandbox": "{sandbox.name}",
    "/sandbox.v1.SandboxService/DeleteSandbox": "{name}",
    "/sandbox.v1.SandboxService/UndeleteSandbox": "{name}",
    "/sandbox.v1.SandboxService/AcquireLease": "{name}",
    "/sandbox.v1.SandboxService/RenewLease": "{name}",
    "/sandbox.v1.SandboxService/ReleaseLease": "{name}",
}
"""Form of the name with fields of the request, by path of a method that names one record."""


class Methods(Caller):
    """The methods of sandbox.v1.SandboxService."""

    def CreateSandbox(
        self,
        request: CreateSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Creates a sandbox. If the request has no id, the service makes one. Fails with ALREADY_EXISTS if the sandbox exists; a deleted sandbox of the same name is replaced. A name stays with its account: fails with ALREADY_EXISTS / NAME_TAKEN if another account has it or had it, and with PERMISSION_DENIED / ACCOUNT_NOT_YOURS for an account that is not the caller's."""
        return self._call(_CREATE_SANDBOX, request, timeout, metadata, received)

    def GetSandbox(
        self,
        request: GetSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Returns one sandbox. Fails with NOT_FOUND if it does not exist or is deleted."""
        return self._call(_GET_SANDBOX, request, timeout, metadata, received)

    def ListSandboxes(
        self,
        request: ListSandboxesRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> ListSandboxesResponse:
        """Returns one page of the sandboxes that match a filter."""
        return self._call(_LIST_SANDBOXES, request, timeout, metadata, received)

    def WatchSandboxes(
        self,
        request: WatchSandboxesRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Generator[WatchSandboxesResponse, None, None]:
        """Streams all matching sandboxes, then every change to them. A call without a deadline ends only when the server ends it with UNAVAILABLE, or with UNAUTHENTICATED once the caller's token has expired; call again with the newest resume_token."""
        return self._watch(_WATCH_SANDBOXES, request, timeout, metadata, received)

    def UpdateSandbox(
        self,
        request: UpdateSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Changes the fields that the mask names and returns the sandbox after the write. Fails with NOT_FOUND if the sandbox does not exist, unless allow_missing is set."""
        return self._call(_UPDATE_SANDBOX, request, timeout, metadata, received)

    def DeleteSandbox(
        self,
        request: DeleteSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Marks a sandbox as deleted and returns it. UndeleteSandbox restores it."""
        return self._call(_DELETE_SANDBOX, request, timeout, metadata, received)

    def UndeleteSandbox(
        self,
        request: UndeleteSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Restores a deleted sandbox. Fails with NOT_FOUND if it never existed and with ALREADY_EXISTS if it is not deleted."""
        return self._call(_UNDELETE_SANDBOX, request, timeout, metadata, received)

    def AcquireLease(
        self,
        request: AcquireLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Acquires the lease of a sandbox. Fails with FAILED_PRECONDITION / LEASE_HELD while another holder has it. If the same holder acquires again, it gets a new token and the old one is void."""
        return self._call(_ACQUIRE_LEASE, request, timeout, metadata, received)

    def RenewLease(
        self,
        request: RenewLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Restarts the TTL of a lease and keeps its token. Fails with FAILED_PRECONDITION / LEASE_LOST if the lease has expired or another holder has it."""
        return self._call(_RENEW_LEASE, request, timeout, metadata, received)

    def ReleaseLease(
        self,
        request: ReleaseLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Gives a lease back before it expires. Fails with FAILED_PRECONDITION / LEASE_LOST if the lease has expired or another holder has it."""
        return self._call(_RELEASE_LEASE, request, timeout, metadata, received)


class AsyncMethods(AsyncCaller):
    """The methods of sandbox.v1.SandboxService, for asyncio."""

    async def CreateSandbox(
        self,
        request: CreateSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Creates a sandbox. If the request has no id, the service makes one. Fails with ALREADY_EXISTS if the sandbox exists; a deleted sandbox of the same name is replaced. A name stays with its account: fails with ALREADY_EXISTS / NAME_TAKEN if another account has it or had it, and with PERMISSION_DENIED / ACCOUNT_NOT_YOURS for an account that is not the caller's."""
        return await self._call(_CREATE_SANDBOX, request, timeout, metadata, received)

    async def GetSandbox(
        self,
        request: GetSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Returns one sandbox. Fails with NOT_FOUND if it does not exist or is deleted."""
        return await self._call(_GET_SANDBOX, request, timeout, metadata, received)

    async def ListSandboxes(
        self,
        request: ListSandboxesRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> ListSandboxesResponse:
        """Returns one page of the sandboxes that match a filter."""
        return await self._call(_LIST_SANDBOXES, request, timeout, metadata, received)

    def WatchSandboxes(
        self,
        request: WatchSandboxesRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> AsyncGenerator[WatchSandboxesResponse, None]:
        """Streams all matching sandboxes, then every change to them. A call without a deadline ends only when the server ends it with UNAVAILABLE, or with UNAUTHENTICATED once the caller's token has expired; call again with the newest resume_token."""
        return self._watch(_WATCH_SANDBOXES, request, timeout, metadata, received)

    async def UpdateSandbox(
        self,
        request: UpdateSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Changes the fields that the mask names and returns the sandbox after the write. Fails with NOT_FOUND if the sandbox does not exist, unless allow_missing is set."""
        return await self._call(_UPDATE_SANDBOX, request, timeout, metadata, received)

    async def DeleteSandbox(
        self,
        request: DeleteSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Marks a sandbox as deleted and returns it. UndeleteSandbox restores it."""
        return await self._call(_DELETE_SANDBOX, request, timeout, metadata, received)

    async def UndeleteSandbox(
        self,
        request: UndeleteSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Restores a deleted sandbox. Fails with NOT_FOUND if it never existed and with ALREADY_EXISTS if it is not deleted."""
        return await self._call(_UNDELETE_SANDBOX, request, timeout, metadata, received)

    async def AcquireLease(
        self,
        request: AcquireLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Acquires the lease of a sandbox. Fails with FAILED_PRECONDITION / LEASE_HELD while another holder has it. If the same holder acquires again, it gets a new token and the old one is void."""
        return await self._call(_ACQUIRE_LEASE, request, timeout, metadata, received)

    async def RenewLease(
        self,
        request: RenewLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Restarts the TTL of a lease and keeps its token. Fails with FAILED_PRECONDITION / LEASE_LOST if the lease has expired or another holder has it."""
        return await self._call(_RENEW_LEASE, request, timeout, metadata, received)

    async def ReleaseLease(
        self,
        request: ReleaseLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Gives a lease back before it expires. Fails with FAILED_PRECONDITION / LEASE_LOST if the lease has expired or another holder has it."""
        return await self._call(_RELEASE_LEASE, request, timeout, metadata, received)
