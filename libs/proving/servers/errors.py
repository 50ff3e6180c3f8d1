"""What can go wrong with a server that we start ourselves."""


class ServersError(Exception):
    """A server is not there or did not do what it was asked."""


class ServerMissing(ServersError):
    """A program or file that a server needs is not on this machine. The message says how to get it."""


class ServerFailed(ServersError):
    """A server ended, or did not answer in time. The message ends with the last lines of its log."""
