"""Prefect's own application, with a door that logs a browser in.

Prefect keeps the password in the browser's storage of its own address, so nobody but a page of that address can put
it there. ``POST /visionmill/login`` takes the password in its body and answers with such a page, which goes on to where
the user wanted to be. Who does not know the password gets no further than to Prefect's own log-in.

The password never stands in an address, nor in arguments, which every user of the machine can read: ``visionmill ui``
opens a file that only its owner can read, and which sends the form.
"""

from __future__ import annotations

import base64
import hmac
import html
import json
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

LOGIN_PATH = "/visionmill/login"
_MAX_BODY = 4096
_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


def create_app() -> Any:
    """For uvicorn: Prefect's application, and the door before its pages."""
    from prefect.server.api.server import create_app as create_prefect
    from starlette.routing import Route

    app = create_prefect()
    app.router.routes.insert(0, Route(LOGIN_PATH, _login, methods=["POST"]))
    return app


async def _login(request: Request) -> Response:
    from starlette.responses import HTMLResponse, PlainTextResponse

    body = (await request.body())[: _MAX_BODY + 1]
    form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=8) if len(body) <= _MAX_BODY else {}
    given, wanted = (form.get(name, [""])[0] for name in ("auth", "next"))
    auth = os.environ["PREFECT_SERVER_API_AUTH_STRING"]
    if not hmac.compare_digest(given.encode(), auth.encode()):
        return PlainTextResponse("This is not the password. Open the page again with `visionmill ui`.", 401, _HEADERS)
    return HTMLResponse(_logged_in(auth, wanted), headers=_HEADERS)


def _logged_in(auth: str, wanted: str) -> str:
    """A page that remembers the password as Prefect's own log-in does, and goes on to a path of the same server."""
    own = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    kept, place = (_script_text(text) for text in (base64.b64encode(auth.encode()).decode(), wanted if own else "/"))
    return (
        "<!doctype html><title>visionmill</title><script>"
        f"localStorage.setItem('prefect-password', {kept}); location.replace({place})</script>"
    )


def _script_text(text: str) -> str:
    return json.dumps(text).replace("<", "\\u003c")


def login_file(url: str, auth: str, path: str) -> str:
    """An HTML file that logs its reader in at a server and goes on to a path there.

    Args:
        url: of the server, without a path.
        auth: ``user:password``.
        path: to go on to, "/runs".
    """
    action, auth, path = (html.escape(text, quote=True) for text in (url + LOGIN_PATH, auth, path))
    return (
        '<!doctype html><meta charset="utf-8"><title>visionmill</title>'
        f'<form method="post" action="{action}"><input type="hidden" name="auth" value="{auth}">'
        f'<input type="hidden" name="next" value="{path}"><button>Open Prefect\'s page</button></form>'
        "<script>document.forms[0].submit()</script>"
    )
