"""The certificate of a migration as one HTML file without scripts, which holds the JSON that it was made from."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from services.router.cli.certificate_text import COMPLETE, NOT_COMPLETE, sections

_BEGIN = '<script type="application/json" id="certificate">'
_END = "</script>"

_STYLE = """
:root { color-scheme: light dark; --good: #1a7f37; --bad: #b42318; --faint: #6b7280; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 3rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
.state { font-weight: 700; } .complete { color: var(--good); } .open { color: var(--bad); }
ul { padding-left: 1.2rem; margin: 0; } li { margin: .2rem 0; overflow-wrap: anywhere; }
.faint { color: var(--faint); } code { font-size: .85rem; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff7b72; --faint: #9ca3af; } }
@media print { body { margin: 0; max-width: none; } }
"""


def page(view: dict[str, Any]) -> str:
    """`view`: the certificate with its seal."""
    found = view["certificate"]
    state, kind = (COMPLETE, "complete") if found["complete"] else (NOT_COMPLETE, "open")
    parts = [f"<section><h2>{escape(heading)}</h2>{_list(rows)}</section>" for heading, rows in sections(found)]
    signed = f"signed with event key {view['key']}" if view["code"] else "not signed"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Migration of {escape(found["service"])}: {state}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Certificate of the migration of {escape(found["service"])}</h1>
<p class="state {kind}">{state}</p>
<p class="faint">Made {escape(found["made"])} by router {escape(found["router"])}, phase {escape(found["phase"])},
generation {found["generation"]}.</p>
{"".join(parts)}
<section><h2>Seal</h2><p>SHA-256 <code>{escape(view["digest"])}</code>, {escape(signed)}.
<code>baton certificate --verify FILE</code> checks this file, text and all.</p></section>
</main>
{_BEGIN}{_json(view)}{_END}
</body>
</html>
"""


def embedded(text: str) -> str:
    """The JSON in a page. Raises ValueError."""
    _, begin, rest = text.partition(_BEGIN)
    inside, end, _ = rest.partition(_END)
    if not begin or not end:
        raise ValueError("the page holds no certificate")
    return inside


def is_page(text: str) -> bool:
    """Whether a file is a page, and not JSON."""
    return not text.lstrip().startswith("{")


def why_other(text: str, view: dict[str, Any]) -> str:
    """Why a page shows something else than the certificate in it; "" if it does not, or is JSON. The seal is of the
    JSON, and people read the text."""
    if not is_page(text):
        return ""
    try:
        same = page(view) == text
    except (KeyError, TypeError, ValueError, AttributeError):
        same = False
    return "" if same else "its text is not that of its certificate, or another release made it: compare with -o json"


def _list(rows: list[str]) -> str:
    return (
        "<ul>" + "".join(f"<li>{escape(row)}</li>" for row in rows) + "</ul>" if rows else '<p class="faint">none</p>'
    )


def _json(view: dict[str, Any]) -> str:
    """JSON that no text in it can end early."""
    return json.dumps(view, ensure_ascii=False).replace("<", "\\u003c")
