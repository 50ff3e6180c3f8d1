"""Names of the gRPC metadata that Baton reads and writes."""

# From clients.
EXPLAIN = "baton-explain"
"""1: the answer's metadata, or the error's, says which store answered, why it was asked, what version the record has,
and whether the answer may be stale. From the router to a store: tell the record's version."""
TRACEPARENT = "traceparent"
CLIENT = "baton-client"
"""What the caller calls itself, for the list of clients that must change something."""

# On internal listeners, from the router to a store.
TOKEN = "baton-token"
REQUEST_ID = "baton-request-id"
MADE_ID = "baton-made-id"
PRINCIPAL = "baton-principal"
REPLICA = "baton-replica"
"""1: answer from what is here, whoever owns it, marked stale unless owned here."""
ACK = "baton-ack"
"""logged: answer a write only when its event is in the log."""
LOGGED = "logged"

# In answers.
DEPRECATED = "baton-deprecated"
"""In the headers: what the caller must change one day, in words."""
STALE = "baton-stale"
"""1: the answer is a replica's; it may lack the newest writes. 0: it is not, for a caller who asked why."""
AGE_SECONDS = "baton-age-seconds"
"""Of a stale answer: how far the replica's feed was behind at most, in seconds."""
VERSION = "baton-version"
"""term-revision of the record that the answer shows: of a replica's answer, of one that is not the first answer to its
request (there, the version that the request made), and for a caller who asked why."""
STORE = "baton-store"
"""The store that answered: A or B; of a list, the stores whose pages it is made of: A,B."""
REASON = "baton-reason"
"""The rule of the plan that named the store to ask first: hold, global flag, update flag, canary, phase..."""
PHASE = "baton-phase"

ANONYMOUS = "anonymous"
"""The principal of a caller without an identity. Never an address."""
