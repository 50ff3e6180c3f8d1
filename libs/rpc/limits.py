"""Sizes of calls, and numbers of connections."""

import resource

METADATA_BYTES = 8 * 1024
"""All metadata of a call, in each direction."""

ARRIVING_BYTES = 3 * 1024
"""A record in the metadata of a write. Encoded as text it takes half of METADATA_BYTES."""

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

CONNECTIONS = 4096
"""Most connections of one listener. One without calls takes some 20 KB."""

FILES_SHARE = 2
"""Share of the process's open files for the connections of one listener: one part in so many. The rest of the process
needs files too."""


def open_files() -> int:
    """Number of files that the process may have open (`ulimit -n`)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft


MOST_FILES = 65_536
"""Files that a process asks for at its start, if it is allowed so many: a client's connection is one."""


def most_connections() -> int:
    return min(CONNECTIONS, open_files() // FILES_SHARE)


def raise_open_files() -> None:
    """Raise the process's limit of open files as far as it is allowed. The usual limit of 1024 is for programs that use
    select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
