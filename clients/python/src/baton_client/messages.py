# ruff: noqa
"""Generated from the contract by `make protos`. Do not edit."""

from baton_client.pb.sandbox_pb2 import Sandbox, Lease, SandboxSpec
from baton_client.pb.sandbox_service_pb2 import (
    CreateSandboxRequest,
    GetSandboxRequest,
    ListSandboxesRequest,
    ListSandboxesResponse,
    WatchSandboxesRequest,
    WatchSandboxesResponse,
    UpdateSandboxRequest,
    DeleteSandboxRequest,
    UndeleteSandboxRequest,
    AcquireLeaseRequest,
    RenewLeaseRequest,
    ReleaseLeaseRequest,
)

__all__ = [
    "AcquireLeaseRequest",
    "CreateSandboxRequest",
    "DeleteSandboxRequest",
    "GetSandboxRequest",
    "Lease",
    "ListSandboxesRequest",
    "ListSandboxesResponse",
    "ReleaseLeaseRequest",
    "RenewLeaseRequest",
    "Sandbox",
    "SandboxSpec",
    "UndeleteSandboxRequest",
    "UpdateSandboxRequest",
    "WatchSandboxesRequest",
    "WatchSandboxesResponse",
]
