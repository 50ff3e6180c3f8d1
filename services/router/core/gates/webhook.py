"""The gate on the answer of an endpoint of somebody else, a webhook. Pure."""

from __future__ import annotations

import json

from libs.text import visible
from services.router.core.evidence import Decided, Evidence
from services.router.core.gates.gate import FAIL, INCONCLUSIVE, PASS, Finding, Gate
from services.router.core.thresholds import Limits

WEBHOOK = "webhook"
"""The gate's name. It is before a phase only if the router has a webhook that decides about that phase."""
MOST_BYTES = 16 * 1024
"""Maximum size of an answer."""
MOST_CHARACTERS = 500
"""Maximum length of an answer's message; a longer one is cut."""

NOT_ASKED = Decided(None, "the webhook was not asked yet")
_OK = 200
_WORDS = {"PASS": (True, "allows"), "FAIL": (False, "refuses"), "INCONCLUSIVE": (None, "does not decide on")}


def read_decision(status: int, body: bytes) -> Decided:
    """The decision in an answer: status 200 and JSON such as {"verdict": "PASS", "message": "no incident is open"}.

    Any other answer decides nothing: a page of a proxy must not pass for a decision.
    """
    if status != _OK:
        return Decided(None, f"the webhook answers {status}")
    try:
        found = json.loads(body)
        passes, verb = _WORDS[found["verdict"]]
        message = found.get("message", "")
        said = visible(message, keep="") if isinstance(message, str) else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Decided(None, "the webhook answers without a verdict: PASS, FAIL or INCONCLUSIVE")
    cut = said if len(said) <= MOST_CHARACTERS else f"{said[: MOST_CHARACTERS - 1]}…"
    return Decided(passes, f"the webhook {verb} the step{f': {cut}' if cut else ''}")


def webhook(evidence: Evidence, limits: Limits) -> Finding:
    decided = evidence.webhook
    if decided is None:
        return Finding(INCONCLUSIVE, "this router has no webhook that decides about the next phase")
    return Finding(INCONCLUSIVE if decided.passes is None else PASS if decided.passes else FAIL, decided.text)


GATES = (
    Gate(
        name=WEBHOOK,
        sentence="The webhook allows the step.",
        requires="the verdict PASS of the endpoint at `gate_webhook_url`",
        verdict=webhook,
        page="gate-webhook",
        runbook="the endpoint's own reason; if it does not answer: start it, or correct gate_webhook_url",
    ),
)
