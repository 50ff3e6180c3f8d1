"""Errors of servers that we start ourselves."""


class ServersError(Exception):
    """A server is missing or failed an operation."""


class ServerMissing(ServersError):
    """A program or file that a server needs is not on this machine. The message has the remedy."""


class ServerFailed(ServersError):
    """A server ended, or did not answer in time. The message ends with the last lines of its log."""
