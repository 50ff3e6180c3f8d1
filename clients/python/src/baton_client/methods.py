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
_CREATE_SANDBOX = Method("/sandbox.v1.SandboxService/CreateSandbox", Sandbox, request_id="request_id")
_GET_SANDBOX = Method("/sandbox.v1.SandboxService/GetSandbox", Sandbox)
_LIST_SANDBOXES = Method("/sandbox.v1.SandboxService/ListSandboxes", ListSandboxesResponse)
_WATCH_SANDBOXES = Method(
    "/sandbox.v1.SandboxService/WatchSandboxes", WatchSandboxesResponse, resume_token="resume_token"
)
_UPDATE_SANDBOX = Method("/sandbox.v1.SandboxService/UpdateSandbox", Sandbox, request_id="request_id")
_DELETE_SANDBOX = Method("/sandbox.v1.SandboxService/DeleteSandbox", Sandbox, request_id="request_id")
_UNDELETE_SANDBOX = Method("/sandbox.v1.SandboxService/UndeleteSandbox", Sandbox, request_id="request_id")
_ACQUIRE_LEASE = Method("/sandbox.v1.SandboxService/AcquireLease", Sandbox, request_id="request_id")
_RENEW_LEASE = Method("/sandbox.v1.SandboxService/RenewLease", Sandbox, request_id="request_id")
_RELEASE_LEASE = Method("/sandbox.v1.SandboxService/ReleaseLease", Sandbox, request_id="request_id")


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
        """Creates a sandbox. Without an id the service makes one."""
        return self._call(_CREATE_SANDBOX, request, timeout, metadata, received)

    def GetSandbox(
        self,
        request: GetSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Returns one sandbox. A deleted one is not found."""
        return self._call(_GET_SANDBOX, request, timeout, metadata, received)

    def ListSandboxes(
        self,
        request: ListSandboxesRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> ListSandboxesResponse:
        """Returns one page of the sandboxes that match the filter."""
        return self._call(_LIST_SANDBOXES, request, timeout, metadata, received)

    def WatchSandboxes(
        self,
        request: WatchSandboxesRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Generator[WatchSandboxesResponse, None, None]:
        """Shows all sandboxes that match, then every change, and goes on so. A call without a deadline ends only when a server ends it (UNAVAILABLE: call again with the newest resume_token)."""
        return self._watch(_WATCH_SANDBOXES, request, timeout, metadata, received)

    def UpdateSandbox(
        self,
        request: UpdateSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Changes the fields that the mask names, and returns the sandbox as the write leaves it."""
        return self._call(_UPDATE_SANDBOX, request, timeout, metadata, received)

    def DeleteSandbox(
        self,
        request: DeleteSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Marks the sandbox deleted and returns it so; UndeleteSandbox brings it back."""
        return self._call(_DELETE_SANDBOX, request, timeout, metadata, received)

    def UndeleteSandbox(
        self,
        request: UndeleteSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Brings a deleted sandbox back."""
        return self._call(_UNDELETE_SANDBOX, request, timeout, metadata, received)

    def AcquireLease(
        self,
        request: AcquireLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Takes the lease of a sandbox that nobody holds. A holder that acquires again gets a new token, and its old one is void."""
        return self._call(_ACQUIRE_LEASE, request, timeout, metadata, received)

    def RenewLease(
        self,
        request: RenewLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Begins the lease's time anew. Its token stays."""
        return self._call(_RENEW_LEASE, request, timeout, metadata, received)

    def ReleaseLease(
        self,
        request: ReleaseLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Ends the lease."""
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
        """Creates a sandbox. Without an id the service makes one."""
        return await self._call(_CREATE_SANDBOX, request, timeout, metadata, received)

    async def GetSandbox(
        self,
        request: GetSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Returns one sandbox. A deleted one is not found."""
        return await self._call(_GET_SANDBOX, request, timeout, metadata, received)

    async def ListSandboxes(
        self,
        request: ListSandboxesRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> ListSandboxesResponse:
        """Returns one page of the sandboxes that match the filter."""
        return await self._call(_LIST_SANDBOXES, request, timeout, metadata, received)

    def WatchSandboxes(
        self,
        request: WatchSandboxesRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> AsyncGenerator[WatchSandboxesResponse, None]:
        """Shows all sandboxes that match, then every change, and goes on so. A call without a deadline ends only when a server ends it (UNAVAILABLE: call again with the newest resume_token)."""
        return self._watch(_WATCH_SANDBOXES, request, timeout, metadata, received)

    async def UpdateSandbox(
        self,
        request: UpdateSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Changes the fields that the mask names, and returns the sandbox as the write leaves it."""
        return await self._call(_UPDATE_SANDBOX, request, timeout, metadata, received)

    async def DeleteSandbox(
        self,
        request: DeleteSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Marks the sandbox deleted and returns it so; UndeleteSandbox brings it back."""
        return await self._call(_DELETE_SANDBOX, request, timeout, metadata, received)

    async def UndeleteSandbox(
        self,
        request: UndeleteSandboxRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Brings a deleted sandbox back."""
        return await self._call(_UNDELETE_SANDBOX, request, timeout, metadata, received)

    async def AcquireLease(
        self,
        request: AcquireLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Takes the lease of a sandbox that nobody holds. A holder that acquires again gets a new token, and its old one is void."""
        return await self._call(_ACQUIRE_LEASE, request, timeout, metadata, received)

    async def RenewLease(
        self,
        request: RenewLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Begins the lease's time anew. Its token stays."""
        return await self._call(_RENEW_LEASE, request, timeout, metadata, received)

    async def ReleaseLease(
        self,
        request: ReleaseLeaseRequest,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        received: Received | None = None,
    ) -> Sandbox:
        """Ends the lease."""
        return await self._call(_RELEASE_LEASE, request, timeout, metadata, received)
