"""A client of Baton's sandbox service.

    with connect("127.0.0.1:7600") as client:
        client.GetSandbox(GetSandboxRequest(name="sandboxes/one"))

The messages are in `baton_client.messages`.
"""

from baton_client.bootstrap import write_bootstrap
from baton_client.client import AsyncClient, Client, connect, connect_async
from baton_client.errors import CallError
from baton_client.interceptors import AsyncBucketInterceptor, BucketInterceptor
from baton_client.tls import Tls

__all__ = [
    "AsyncBucketInterceptor",
    "AsyncClient",
    "BucketInterceptor",
    "CallError",
    "Client",
    "Tls",
    "connect",
    "connect_async",
    "write_bootstrap",
]
