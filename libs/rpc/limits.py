"""Size limits of calls."""

METADATA_BYTES = 8 * 1024
"""All metadata of a call, in each direction."""

REQUEST_BYTES = 1024 * 1024
"""A client's request."""

INTERNAL_REQUEST_BYTES = 4 * 1024 * 1024
"""A request between a router and a store, which may be a batch of records."""

ANSWER_BYTES = 2 * 1024 * 1024
"""Size at which a page of records ends."""

REQUEST_SLACK_BYTES = 64 * 1024
"""Excess up to which an oversized request is refused with a reason. Beyond it, the transport refuses the request
unread."""

HARD_MESSAGE_BYTES = 16 * 1024 * 1024
"""The largest message that the transport sends, and that Baton's clients receive."""
