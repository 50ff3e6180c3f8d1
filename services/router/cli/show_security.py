"""Lines of the status about authentication and certificates."""

from __future__ import annotations

from services.router.cli.views import View


def certificates_line(view: View) -> list[tuple[str, str]]:
    """The days that are left of each certificate."""
    processes = [("router", view), *view["stores"].items()]
    found = [(name, one["certificate"]["days"]) for name, one in processes if one["certificate"] is not None]
    left = [f"{name} {days:.0f} days" for name, days in found if days is not None]
    return [("certificates", ", ".join(left))] if left else []


def open_line(view: View) -> list[tuple[str, str]]:
    """Processes that serve clients without authentication, by an explicit setting."""
    processes = [(f"store {name}", store) for name, store in view["stores"].items()] + [("this router", view)]
    names = [name for name, one in processes if one["public_auth"] == "none"]
    optional = [name for name, one in processes if one["public_auth_optional"]]
    found = [f"not authenticated at {', '.join(names)} (public_auth = none)"] if names else []
    found += [f"credentials are optional at {', '.join(optional)} (public_auth_optional)"] if optional else []
    return [("clients", "; ".join(found))] if found else []
