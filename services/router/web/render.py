"""Templates of the page. Every value is escaped for HTML, and its control and direction characters are made visible.

Values of hidden fields keep these characters: they name a record or an event, and are not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from libs.identity.principal import Principal, Role
from libs.text import visible
from services.router.core.canary import EXAMPLE
from services.router.web.session import PATH, Session
from services.router.web.view.page import SECTIONS


def _safe(value: Any) -> Any:
    """Text from elsewhere may reorder the text around it or hide: names of records, reasons, errors of stores."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_TEMPLATES = Environment(
    loader=PackageLoader("services.router.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_safe,
    auto_reload=False,
)
_TEMPLATES.globals.update(base=PATH, walk_example=EXAMPLE)


def for_operator(session: Session, principal: Principal) -> Mapping[str, Any]:
    """The part of the context that depends on the operator."""
    named = not principal.is_anonymous
    return {
        "csrf": session.csrf,
        "who": principal.subject if named else session.actor,
        "role": max(principal.roles, default=Role.VIEWER).name.lower() if named else "",
        "may_operate": principal.has(Role.OPERATOR),
        "may_admin": principal.has(Role.ADMIN),
    }


def render(template: str, context: Mapping[str, Any]) -> str:
    return _TEMPLATES.get_template(template).render(context)


def sections(context: Mapping[str, Any], names: Sequence[str] = SECTIONS) -> dict[str, Markup]:
    """HTML by section, in the order of the page."""
    return {name: Markup(render(f"sections/{name}.html", context)) for name in names}
