"""The operators' page as an ASGI application: sign-in, the live page, its stream, and permalinks.

It holds no rule about the migration and no state of it: every call goes through `web.calls`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.clock import Clock
from libs.errors import BatonError, InvalidField
from libs.http.asgi import names_of, peer_of, read_body
from libs.http.documents import Document
from libs.http.errors import HTTP_CODES, RefusedByHttp
from libs.http.origins import check_page
from libs.identity.principal import Principal
from libs.pb.baton.control.v1 import control_pb2 as pb
from libs.rpc.errors import code_of, log_defect
from services.router.web import live, records
from services.router.web.calls import Caller, CallFailed, ControlApi, Peer
from services.router.web.reading import read
from services.router.web.render import for_operator, render, sections
from services.router.web.session import (
    CSRF_FIELD,
    PATH,
    Seal,
    Session,
    check_form,
    check_origin,
    cookie_of,
    set_cookie,
)
from services.router.web.verbs import VERBS, agreed, result
from services.router.web.view import differences, journal
from services.router.web.view.page import context

EVENTS = "text/event-stream"
FORM_BYTES = 64 * 1024
"""A plan of a walk fits, with every character encoded."""
MOST_NAME_CHARACTERS = 100
OWN_FIELDS = frozenset({CSRF_FIELD, "generation", "overridden", "confirm", "reason"})
"""Fields of a form beside those of its verb."""
MOST_ENTRIES = 1000
FIRST_SECONDS = 1.5
"""Time that the first page waits for answers that a fault delays. The stream brings them later."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Not "no-referrer": with it a browser hides the origin of a form, which `check_origin` needs.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
ASSETS = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}


class SignedOut(Exception):
    """There is no session, or the control listener does not accept its credentials."""

    def __init__(self, trouble: str = "") -> None:
        self.trouble = trouble


@dataclass(frozen=True, slots=True)
class Access:
    """The fields of the sign-in."""

    needs_token: bool
    needs_name: bool
    """The credentials name no person, so the journal needs a name."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A request in a session."""

    session: Session
    principal: Principal
    caller: Caller


class Console:
    """The page's endpoints."""

    def __init__(self, api: ControlApi, access: Access, seal: Seal, clock: Clock, draining: Callable[[], bool]) -> None:
        self._api = api
        self._access = access
        self._seal = seal
        self._clock = clock
        self._draining = draining

    def app(self) -> ASGIApp:
        folder = resources.files("services.router.web") / "assets"
        assets = [
            Route(
                f"{PATH}/assets/{name}",
                Document(f"{PATH}/assets", f"{kind}; charset=utf-8", (folder / name).read_bytes(), {}),
            )
            for name, kind in ASSETS.items()
        ]
        page = Starlette(
            routes=[
                Route("/", self._home),
                Route(PATH, self._home),
                Route(f"{PATH}/", self._guarded(self._page)),
                Route(f"{PATH}/sign-in", self._guarded(self._sign_in_form), methods=["GET"]),
                Route(f"{PATH}/sign-in", self._guarded(self._sign_in), methods=["POST"]),
                Route(f"{PATH}/sign-out", self._guarded(self._sign_out), methods=["POST"]),
                Route(f"{PATH}/events", self._guarded(self._events)),
                Route(f"{PATH}/plan/{{verb}}", self._guarded(self._plan), methods=["POST"]),
                Route(f"{PATH}/do/{{verb}}", self._guarded(self._do), methods=["POST"]),
                Route(f"{PATH}/record", self._guarded(self._record)),
                Route(f"{PATH}/difference/{{id}}", self._guarded(self._difference)),
                Route(f"{PATH}/journal/{{generation:int}}", self._guarded(self._entry)),
                *assets,
            ]
        )
        return _with_headers(page)

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint with the checks and the errors of all of them."""

        async def answer(request: Request) -> Response:
            try:
                if not self._access.needs_token:
                    # A page whose name resolves to this listener could sign in as anybody.
                    check_page(request.scope)
                return await endpoint(request)
            except SignedOut as out:
                if request.method == "GET" and not request.url.path.endswith("/events"):
                    return self._sign_in_page(out.trouble, 401 if out.trouble else 200)
                return _problem("Signed out", out.trouble or "Sign in again.", 401)
            except CallFailed as error:
                return _problem("The call failed", error.message, error.http_code)
            except BatonError as error:
                code = error.http_code if isinstance(error, RefusedByHttp) else HTTP_CODES[code_of(error)]
                return _problem("Refused", error.message, code)

        return answer

    async def _home(self, _: Request) -> Response:
        return RedirectResponse(f"{PATH}/")

    async def _page(self, request: Request) -> Response:
        visit = await self._visit(request)
        status = await visit.caller.call("GetStatus", pb.GetStatusRequest())
        own = for_operator(visit.session, visit.principal)
        values = {**own, **context(status, await read(visit.caller, seconds=FIRST_SECONDS), self._clock.now())}
        return HTMLResponse(
            render("page.html", {**own, "title": values["head"].phase, "sections": sections(values).items()})
        )

    async def _events(self, request: Request) -> Response:
        visit = await self._visit(request)
        if request.method == "HEAD":
            # The page asks so whether its session is over. A body would never end.
            return Response(media_type=EVENTS)
        own = for_operator(visit.session, visit.principal)
        until = self._seal.end(cookie_of(request.headers))
        return StreamingResponse(live.follow(visit.caller, own, self._clock, self._draining, until), media_type=EVENTS)

    async def _plan(self, request: Request) -> Response:
        """Show the effects of a change. Nothing changes."""
        visit, verb, form = await self._verb(request)
        plan = await VERBS[verb](visit.caller, form)
        values = {
            "title": plan.title,
            "plan": plan,
            "verb": verb,
            "fields": {name: value for name, value in form.items() if name not in OWN_FIELDS},
            "takes_reason": "reason" in plan.request.DESCRIPTOR.fields_by_name,
        }
        return HTMLResponse(render("plan.html", {**for_operator(visit.session, visit.principal), **values}))

    async def _do(self, request: Request) -> Response:
        """Make a change that was shown."""
        visit, verb, form = await self._verb(request)
        plan = await VERBS[verb](visit.caller, form)
        answer = await visit.caller.call(plan.method, agreed(plan, form))
        return HTMLResponse(render("done.html", {"title": plan.title, "text": result(answer)}))

    async def _verb(self, request: Request) -> tuple[Visit, str, dict[str, str]]:
        """Raises SignedOut, ForeignForm, InvalidField."""
        visit = await self._visit(request)
        form = await form_of(request)
        check_form(visit.session, request.headers, form.get(CSRF_FIELD, ""))
        verb = request.path_params["verb"]
        if verb not in VERBS:
            raise InvalidField("verb", verb, f"one of {', '.join(VERBS)}")
        return visit, verb, form

    async def _record(self, request: Request) -> Response:
        visit = await self._visit(request)
        name = request.query_params.get("name", "").strip()
        return HTMLResponse(render("record.html", await records.context(visit.caller, name)))

    async def _difference(self, request: Request) -> Response:
        visit = await self._visit(request)
        found = await visit.caller.call("GetDifference", pb.GetDifferenceRequest(id=request.path_params["id"]))
        values = {"title": "Difference", "example": differences.example(found.example)}
        return HTMLResponse(render("difference.html", values))

    async def _entry(self, request: Request) -> Response:
        visit = await self._visit(request)
        wanted = request.path_params["generation"]
        answer = await visit.caller.call("ListJournal", pb.ListJournalRequest(limit=MOST_ENTRIES))
        for one in answer.entries:
            if one.generation == wanted:
                found = journal.entry(one)
                return HTMLResponse(render("entry.html", {"title": f"Generation {wanted}", "entry": found}))
        return _problem(
            "Not found", f"The last {MOST_ENTRIES} entries of the journal have no generation {wanted}.", 404
        )

    async def _sign_in_form(self, _: Request) -> Response:
        return self._sign_in_page()

    async def _sign_in(self, request: Request) -> Response:
        check_origin(request.headers)
        form = await form_of(request)
        actor = form.get("actor", "").strip()[:MOST_NAME_CHARACTERS] or "console"
        if self._access.needs_name and not form.get("actor", "").strip():
            return self._sign_in_page("Give your name: the journal keeps it.", 400)
        session = Session.begin(actor, form.get("token", "").strip())
        try:
            await self._api.principal(session, _peer(request))
        except BatonError as error:
            return self._sign_in_page(error.message, 401)
        return self._with_cookie(
            RedirectResponse(f"{PATH}/", 303), request, self._seal.seal(session, self._clock.now())
        )

    async def _sign_out(self, request: Request) -> Response:
        session = self._session(request)
        check_form(session, request.headers, (await form_of(request)).get(CSRF_FIELD, ""))
        return self._with_cookie(RedirectResponse(f"{PATH}/sign-in", 303), request, "")

    def _sign_in_page(self, trouble: str = "", code: int = 200) -> Response:
        access = self._access
        values = {"trouble": trouble, "needs_token": access.needs_token, "needs_name": access.needs_name}
        return HTMLResponse(render("sign_in.html", values), code)

    def _with_cookie(self, response: Response, request: Request, value: str) -> Response:
        # The browser's own connection counts, also before a proxy that ends TLS.
        secure = request.headers.get("origin", "").startswith("https:")
        response.headers["set-cookie"] = set_cookie(value, secure=secure)
        return response

    def _session(self, request: Request) -> Session:
        """Raises SignedOut."""
        session = self._seal.open(cookie_of(request.headers), self._clock.now())
        if session is None:
            raise SignedOut()
        return session

    async def _visit(self, request: Request) -> Visit:
        """Raises SignedOut, BatonError."""
        session, peer = self._session(request), _peer(request)
        try:
            principal = await self._api.principal(session, peer)
        except BatonError as error:
            if error.code == "UNAUTHENTICATED":
                raise SignedOut(error.message) from None
            raise
        return Visit(session, principal, self._api.caller(session, peer))


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form. Raises InvalidField, BodyTooLarge, WrongMediaType."""
    body = await read_body(request.receive, request.headers, FORM_BYTES)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=50))
    except ValueError:
        raise InvalidField("body", f"{len(body)} bytes", "a form of this page") from None


def _peer(request: Request) -> Peer:
    return Peer(peer_of(request.scope), {name: list(values) for name, values in names_of(request.scope).items()})


def _problem(title: str, text: str, code: int) -> Response:
    return HTMLResponse(render("problem.html", {"title": title, "text": text}), code)


def _with_headers(app: ASGIApp) -> ASGIApp:
    """The application with the headers of every response. A defect leaves a stack trace in the log and a 500."""
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = False

        async def adding(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in given)]
            await send(message)

        try:
            await app(scope, receive, adding)
        # The outermost handler of a request.
        except Exception as error:  # noqa: BLE001
            log_defect(error)
            if not begun:
                await _problem("A defect", "The router's log has the cause.", 500)(scope, receive, adding)

    return answer
