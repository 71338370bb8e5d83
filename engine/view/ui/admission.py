"""Who may look: whoever has the link. Everything else, and every page of somebody else's, is refused."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlencode

from starlette.datastructures import URL, Headers, MutableHeaders, QueryParams
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
HEADERS = {
    # Styles that a picture carries are allowed, scripts but our own are not; nothing is loaded from elsewhere, and nobody frames us.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
REFUSED = (
    "This page is for whoever started `flywheel ui`: open the link that it printed, token and all. "
    "(The token changes each time it starts.)\n"
)


@dataclass
class Admission:
    """Lets requests through that bring the token: in the link once, in a cookie from then on. Only reading is allowed.

    The name of the host is looked at, too, so that a page of another name that points here (DNS rebinding) is refused.
    """

    app: ASGIApp
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._answer(scope)(scope, receive, guarded)

    def _answer(self, scope: Scope) -> ASGIApp:
        host = Headers(scope=scope).get("host", "").rpartition(":")
        if (host[0] or host[2]) not in HOSTS:
            return PlainTextResponse(REFUSED, 403)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("There is nothing to change here.\n", 405)
        asked, name = HTTPConnection(scope), self._cookie(scope)
        query = asked.query_params
        if "token" in query:
            if not self._is_ours(query["token"]):
                return PlainTextResponse(REFUSED, 403)
            answer = RedirectResponse(_without_token(scope["path"], query), 303)
            answer.set_cookie(name, self.token, httponly=True, samesite="lax")
            return answer
        return self.app if self._is_ours(asked.cookies.get(name, "")) else PlainTextResponse(REFUSED, 403)

    def _is_ours(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    def _cookie(self, scope: Scope) -> str:
        """Its name: cookies of a host are those of all its ports."""
        return f"flywheel-{URL(scope=scope).port or 80}"


def _without_token(path: str, query: QueryParams) -> str:
    left = [(name, value) for name, value in query.multi_items() if name != "token"]
    return "/" + path.lstrip("/") + (f"?{urlencode(left)}" if left else "")
