"""A bare proxy, as the minimum cost of a proxy in Python: it forwards each call's bytes without reading them.

python -m tests.bench.proxy LISTEN TARGET
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

from libs.process import event_loop

OPTIONS = (
    ("grpc.so_reuseport", 0),
    # The bench's channels ping every second.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


async def serve(listen: str, target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        calls: dict[str, Any] = {}

        class Forward(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> Any:
                call = calls.setdefault(details.method, channel.unary_unary(details.method))

                async def handle(request: bytes, context: Any) -> bytes:
                    answer: bytes = await call(request, timeout=context.time_remaining())
                    return answer

                return grpc.unary_unary_rpc_method_handler(handle)

        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((Forward(),))
        server.add_insecure_port(listen)
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        runner.run(serve(*sys.argv[1:]))
