"""What every request passes on its way in: the key, the size of its body, its time; and a line in the log."""

from __future__ import annotations

import hmac
import logging
import time
from typing import Any

import anyio
from fastapi import HTTPException
from fastapi.responses import JSONResponse

from fsdino.serve.limits import Limits
from fsdino.serve.metrics import Metrics

# Says nothing of what is kept, and is asked for by what cannot send a key: supervisors, and browsers.
OPEN_PATHS = ("/healthz", "/readyz", "/docs", "/openapi.json")
ACCESS = logging.getLogger("fsdino.serve.access")


class Gate:
    """ASGI middleware around all routes.

    Args:
        app: what answers.
        limits: of body and time.
        metrics: where requests are counted.
        key: that requests must carry as a bearer token; None asks for none.
    """

    def __init__(self, app: Any, limits: Limits, metrics: Metrics, key: str | None) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._key = None if key is None else f"bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, taken = time.perf_counter(), 0, 0
        most = self.limits.max_upload_mb * 2**20

        async def counted() -> Any:
            nonlocal taken
            # What the header says is believed only where it is too much: a body may come without one.
            if _content_length(scope) <= most:
                message = await receive()
                taken += len(message.get("body", b""))
                if taken <= most:
                    return message
            raise HTTPException(
                413, f"the request is larger than {self.limits.max_upload_mb} MB; send fewer or smaller files."
            )

        async def noted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            # Before the body is read, so that nobody without the key makes the service take one.
            if not self._may_pass(scope):
                text = "this service asks for its key; send it as 'Authorization: Bearer KEY'."
                answer = JSONResponse({"detail": text}, 401, {"WWW-Authenticate": "Bearer"})
                await answer(scope, receive, noted)
                return
            if self._is_foreign(scope):
                text = "this service takes no requests from pages of other sites; give it a key, and send that."
                await JSONResponse({"detail": text}, 403)(scope, receive, noted)
                return
            with anyio.move_on_after(self.limits.max_seconds) as patience:
                await self.app(scope, counted, noted)
            # Where an answer had begun, the connection is simply closed.
            if patience.cancelled_caught and not status:
                text = f"the request took longer than {self.limits.max_seconds} s; send fewer images at once."
                await JSONResponse({"detail": text}, 504)(scope, receive, noted)
        finally:
            self._note(scope, status or 500, time.perf_counter() - started, taken)

    def _may_pass(self, scope: Any) -> bool:
        if self._key is None or scope["path"] in OPEN_PATHS:
            return True
        sent = dict(scope["headers"]).get(b"authorization", b"")
        word, _, key = sent.partition(b" ")
        # Compared in a time that does not tell how much of it was right.
        return hmac.compare_digest(word.lower() + b" " + key.strip(), self._key)

    def _is_foreign(self, scope: Any) -> bool:
        # A browser lets any page send forms to this machine, without a look at the answer; it says who sent them.
        sent = dict(scope["headers"])
        origin = sent.get(b"origin", b"")
        return self._key is None and origin != b"" and origin.partition(b"://")[2] != sent.get(b"host")

    def _note(self, scope: Any, status: int, seconds: float, taken: int) -> None:
        # Routes, not paths: whoever asks for a thousand paths must not make a thousand counters.
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.requests.labels(scope["method"], route, status).inc()
        self.metrics.seconds.labels(scope["method"], route).observe(seconds)
        client, path = (scope.get("client") or ("-",))[0], scope["path"][:200]
        ACCESS.info(f"{client} {scope['method']} {path!r} {status} {1000 * seconds:.0f} ms {taken} bytes")


def _content_length(scope: Any) -> int:
    said = dict(scope["headers"]).get(b"content-length", b"")
    return int(said) if said.isdigit() else 0
