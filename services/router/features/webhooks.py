"""The features that call an external endpoint: notices, and the gate `webhook`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from libs.identity.jwks import is_local
from libs.ownership.model import Store
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.secret_file import SecretFile
from libs.settings import WrongSetting
from libs.text import hide_password
from services.router.features.shared import Feature, SharedFlows
from services.router.flows.steering.gate_webhook import GateWebhook
from services.router.flows.steering.notify import Notifications, Watched
from services.router.flows.steering.webhook import Webhook, parse_secret


def notices(flows: SharedFlows) -> Feature:
    """Send a notice for each change that people want to hear of. Raises WrongSetting."""
    settings, clock = flows.settings, flows.clock
    webhook = _webhook(flows, "notify", settings.notify_url, settings.notify_secret_file)
    if webhook is None:
        return Feature()

    def conflicts() -> dict[str, int]:
        now = clock.monotonic()
        fresh = {store.value: flows.observer.view(store).fresh(now) for store in Store}
        return {name: status.conflicts for name, status in fresh.items() if status is not None}

    watched = Watched(
        lambda: list(flows.jobs.view),
        lambda setting: flows.migration.outlook(setting).results,
        conflicts,
        lambda: flows.jobs.known and flows.measurement.fresh,
    )
    made = Notifications(flows.connections.control_store, watched, webhook, clock, flows.name)

    def add_alerts(answer: pb.GetStatusResponse) -> None:
        answer.alerts.extend(made.alerts)

    return Feature(loops=[made.loop], status=add_alerts)


def gate_webhook(flows: SharedFlows) -> Feature:
    """Let an endpoint decide about phases. Raises WrongSetting."""
    settings = flows.settings
    webhook = _webhook(flows, "gate_webhook", settings.gate_webhook_url, settings.gate_webhook_secret_file)
    if webhook is None:
        return Feature()
    made = GateWebhook(webhook, settings.decided_phases, flows.cache, flows.clock)
    flows.migration.webhook = made
    return Feature(loops=[made.loop], evidence=made.evidence)


def _webhook(flows: SharedFlows, name: str, url: str, secret_file: Path | None) -> Webhook | None:
    """`name`: of the settings NAME_url and NAME_secret_file. None: there is no URL. Raises WrongSetting."""
    secret_name = f"{name}_secret_file"
    if not url:
        if secret_file is not None:
            raise WrongSetting(f"{secret_name}: it is set, but {name}_url is not")
        return None
    check_url(f"{name}_url", url, secret_name)
    secret = None
    if secret_file is not None:
        secret = SecretFile(secret_file, parse_secret, flows.clock, secret_name, WrongSetting)
    return Webhook(url, f"/baton/{flows.connections.contract.service}", secret, flows.clock)


def check_url(name: str, url: str, secret_name: str) -> None:
    """Raises WrongSetting. Without TLS a request could be read and changed on its way, so only on this machine."""
    shown = hide_password(url, one_address=True)
    wrong = WrongSetting(f"{name}: {shown!r} is not valid: https://host/path, or http:// on this machine")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        # The client that sends has rules of its own.
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        raise wrong from None
    if parts.username is not None or parts.password is not None:
        raise WrongSetting(f"{name}: it has a user or a password; the signature ({secret_name}) is for that")
    if not host or parts.scheme not in ("http", "https") or (parts.scheme == "http" and not is_local(url)):
        raise wrong
