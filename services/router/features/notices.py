"""The feature for notices to other tools by webhook."""

from __future__ import annotations

from urllib.parse import urlsplit

from libs.identity.jwks import is_local
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.secret_file import SecretFile
from libs.settings import WrongSetting
from services.router.features.shared import Feature, SharedFlows
from services.router.flows.steering.notify import Notifications, Watched, Webhook, parse_secret


def notices(flows: SharedFlows) -> Feature:
    """Send a notice for each change that people want to hear of. Raises WrongSetting."""
    settings, connections, clock = flows.settings, flows.connections, flows.clock
    if not settings.notify_url:
        if settings.notify_secret_file is not None:
            raise WrongSetting("notify_secret_file: it is set, but notify_url is not")
        return Feature()
    check_url(settings.notify_url)
    secret = None
    if settings.notify_secret_file is not None:
        secret = SecretFile(settings.notify_secret_file, parse_secret, clock, "notify_secret_file", WrongSetting)

    def conflicts() -> dict[str, int]:
        now = clock.monotonic()
        fresh = {store.value: flows.observer.view(store).fresh(now) for store in Store}
        return {name: status.conflicts for name, status in fresh.items() if status is not None}

    watched = Watched(
        lambda: list(flows.jobs.view), lambda: flows.migration.outlook(flows.cache.current).results, conflicts
    )
    webhook = Webhook(settings.notify_url, f"/baton/{connections.contract.service}", secret, clock)
    made = Notifications(connections.control_store, watched, webhook, clock, flows.name)

    def add_alerts(answer: pb.GetStatusResponse) -> None:
        answer.alerts.extend(made.alerts)

    return Feature(loops=[made.loop], status=add_alerts)


def check_url(url: str) -> None:
    """Raises WrongSetting. Without TLS a notice could be read and changed on its way, so only on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise WrongSetting(f"notify_url: {url!r} is not valid: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise WrongSetting("notify_url: it has a user or a password; the signature (notify_secret_file) is for that")
    if not host or parts.scheme not in ("http", "https") or (parts.scheme == "http" and not is_local(url)):
        raise WrongSetting(f"notify_url: {url!r} is not valid: https://host/path, or http:// on this machine")
