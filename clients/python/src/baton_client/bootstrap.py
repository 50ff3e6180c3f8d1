"""gRPC's bootstrap file for direct calls: the address of the routers' xDS listeners."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from baton_client.tls import Tls

PROVIDER = "baton"
"""Name of the certificate provider, for the routers' setting xds_certificate_provider."""


def write_bootstrap(path: str | os.PathLike[str], server: str, *, tls: Tls | None = None, node: str = "") -> None:
    """Write the file. Set the environment variable GRPC_XDS_BOOTSTRAP to its path before the program starts, and call
    `connect("xds:///sandbox.v1.SandboxService")`.

    `server`: address of the routers' xDS listeners, "host:port", or any other target of gRPC, such as
    "dns:///routers.internal:7650" for several. `tls`: files for TLS to these listeners, to stores and to routers; gRPC
    reads them again when they change. `node`: name of this client in the routers' logs.
    """
    Path(path).write_text(json.dumps(bootstrap(server, tls=tls, node=node), indent=2))


def bootstrap(server: str, *, tls: Tls | None = None, node: str = "") -> dict[str, Any]:
    """The content of the file."""
    found: dict[str, Any] = {
        "xds_servers": [{"server_uri": server, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
        # gRPC for Node.js refuses a file without a locality.
        "node": {"id": node or f"{socket.gethostname()}:{os.getpid()}", "locality": {}},
    }
    if tls is not None:
        files = {"ca_certificate_file": tls.ca, "certificate_file": tls.certificate, "private_key_file": tls.key}
        config = {name: str(Path(file).absolute()) for name, file in files.items() if file is not None}
        found["xds_servers"][0]["channel_creds"] = [{"type": "tls", "config": config}]
        refresh = {"refresh_interval": "60s"}
        found["certificate_providers"] = {PROVIDER: {"plugin_name": "file_watcher", "config": {**config, **refresh}}}
    return found
