"""A contract over HTTP: REST, Connect, gRPC-Web and MCP. Each of these protocols is one door.

A request passes `listener` and `connection` (limits, drain), `doors` (choice of the door by path), its door, and
`gateway` (the gate and the handlers of gRPC). `opening` builds all of them for a process.

REST:               `rest`, its paths in `bindings` and `templates`, its query in `values`, its JSON bodies in
                    `json_body` and `json_types`, its watches in `events`
Connect, gRPC-Web:  `procedures` chooses `connect` or `grpc_web`; their messages are in `codecs` and `envelopes`
MCP:                `mcp_door` over HTTP, `mcp_stdio` over stdin and stdout; `mcp_server` serves the tools of `tools`
documents:          `documents` serves the output of `openapi`, `openapi_parts`, `json_schema` and `comments`
all doors:          `call` (one call), `asgi` (headers, bodies, responses), `streams` (watches), `errors` (HTTP codes),
                    `forms` (the messages of old schema versions)
"""
