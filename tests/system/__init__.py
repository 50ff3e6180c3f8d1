"""Systems for tests, built from the product's own parts with adapters in memory.

store      `running_store`: one store behind its public and its internal listener
whole      `running_system`: two stores and a router; `another_router`: one more router in front of them
control    `running_controlled_system`: a whole system and the router's control API
http       `http_door` and `endpoint`: HTTP listeners beside the gRPC listeners of a store or a system
direct     `running_direct`: a router's xDS listener, with servers that answer with their names behind it
envoy      `running_envoy`: the real Envoy in front of such a listener
programs   `running_programs`: both stores and a router, opened from settings as their programs open them
"""
