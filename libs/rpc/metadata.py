"""Names of the gRPC metadata that Baton reads and writes."""

# From clients.
EXPLAIN = "baton-explain"
""""1": report with the answer or the error the store, the reason for its choice, the record's version, and whether the
answer may be stale. From the router to a store: report the record's version."""
TRACEPARENT = "traceparent"
CLIENT = "baton-client"
"""Name that the caller gives itself, for the list of clients that must change."""
BUCKET = "baton-bucket"
"""Bucket of the call's record, from a client that follows the router's routes. A store computes the bucket itself; the
name alone marks a direct call."""

# On internal listeners, from the router to a store.
TOKEN = "baton-token"
REQUEST_ID = "baton-request-id"
MADE_ID = "baton-made-id"
PRINCIPAL_BIN = "baton-principal-bin"
"""The caller of the router, as a message of baton.identity.v1."""
PRINCIPAL = "baton-principal"
"""The caller's subject alone, from routers of the release before."""
SERVED_AS = "baton-served-as"
""" "subject": serve the request under its caller's subject, not under `anonymous`."""
SUBJECT = "subject"
REPLICA = "baton-replica"
""" "1": answer from this store's row, whatever its owner, marked stale unless owned here."""
ARRIVING_BIN = "baton-arriving-bin"
"""A released record, serialized, that the store adopts before it carries out a write of this record."""
ACK = "baton-ack"
""" "logged": acknowledge a write only once its event is in the log."""
LOGGED = "logged"

# From a store or a router that passes a call on.
HOPS = "baton-hops"
"""Number of times that the call was passed on by a store."""

# In answers.
DEPRECATED = "baton-deprecated"
"""The change that the caller must make, in words: in the trailers of a call, in the headers of a stream."""
STALE = "baton-stale"
""""1": the answer is a replica's and may lack the newest writes. "0": it is not; sent only to callers with
`EXPLAIN`."""
AGE_SECONDS = "baton-age-seconds"
"""Maximum lag of the replica's feed for a stale answer, in seconds."""
VERSION = "baton-version"
"""term-revision of the record: in a replica's answer, in a repeated answer (the version that the request made), and for
callers with `EXPLAIN`."""
TRACE_ID = "baton-trace-id"
"""Trace of a call that failed, for the logs and traces of all processes. Sent if the call is traced."""
STORE = "baton-store"
"""Store that answered: A or B. For a list, the stores of its pages: A,B."""
REASON = "baton-reason"
"""Rule of the plan that chose the first store: hold, global flag, update flag, canary, phase..."""
PHASE = "baton-phase"
