"""Names of the gRPC metadata that Baton reads and writes."""

# From clients.
EXPLAIN = "baton-explain"
"""1: the answer's metadata says which store answered and why."""
TRACEPARENT = "traceparent"

# On internal listeners, from the router to a store.
TOKEN = "baton-token"
REQUEST_ID = "baton-request-id"
MADE_ID = "baton-made-id"
PRINCIPAL = "baton-principal"
REPLICA = "baton-replica"
"""1: answer from what is here, whoever owns it, marked stale unless owned here."""

# In answers.
STALE = "baton-stale"
"""1: the answer is a replica's; it may lack the newest writes."""
AGE_SECONDS = "baton-age-seconds"
"""Of a stale answer: how far the replica's feed was behind at most, in seconds."""
VERSION = "baton-version"
"""term-revision that a served request made, when its answer is a later one."""
STORE = "baton-store"
"""The store that answered: A or B."""
REASON = "baton-reason"
PHASE = "baton-phase"

ANONYMOUS = "anonymous"
"""The principal of a caller without an identity. Never an address."""
