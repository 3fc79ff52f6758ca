"""`fsdino demo`: serve the page on this machine, which calls no other."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from fsdino.base.auto import AUTO
from fsdino.base.ranges import Megabytes, within_ranges
from fsdino.demo.studio import PROTOTYPE, Studio
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.formats import listed

# Everything from this server alone; Gradio's own scripts evaluate templates and use data and blob addresses.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
# What Gradio offers beside the page: tunnels, servers of its own, monitors. Nobody asked for them here.
NOTHING_ELSE = dict.fromkeys(("share", "ssr_mode", "pwa", "mcp_server", "enable_monitoring"), False)
HEADERS = ((b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"))


class OfflinePolicy:
    """ASGI middleware that forbids the browser to load anything from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, with the policy among the headers."""

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await self.app(scope, receive, with_policy)


def open_studio(model: str, compare: Sequence[str], device: str, encoder_weights: str | None = None) -> Studio:
    """Load what the page compares: models that `fsdino.load` opens, or "prototype"."""
    main = EngineChoice(model, device=device, encoder_weights=encoder_weights).settled()
    model, further = main.model, [EngineChoice(name, device=device) for name in compare if name != PROTOTYPE]
    opened: dict[str, Any] = {choice.model: choice.open() for choice in (*further, main)}
    named = {name: shown_name(name, method.title) for name, method in opened.items()}
    # Answers are kept by the shown name, so two models of one short name are shown by their whole paths.
    if len(set(named.values())) < len(named):
        named = {name: name for name in opened}
    others = {named.get(name, name): opened.get(name) for name in compare if name != model}
    return Studio(opened[model], named[model], others)


def shown_name(model: str, title: str = "FS-DINO") -> str:
    """What the page calls a model: by its method's title and its name, a folder by its last one that says something."""
    parts = [part for part in Path(model).parts if part not in ("export", "checkpoints", "last.ckpt")]
    return f"{title} {model}" if len(Path(model).parts) == 1 else "/".join(parts[-2:])


@within_ranges
def demo(
    model: str = AUTO,
    compare: Sequence[str] | str = (PROTOTYPE,),
    host: str = "127.0.0.1",
    port: int | None = None,
    max_upload_mb: Megabytes = 20,
    device: str = "auto",
    open_browser: bool = False,
    encoder_weights: str | None = None,
) -> NoReturn:
    """Serve a local page: draw on an example, drop images, see and keep the masks.

    The process ends with it, after Ctrl+C or when it is asked to end (SIGTERM, SIGHUP), whatever is being searched.

    Args:
        model: a name of `fsdino models`, timm's name of a Vision Transformer, a model folder, checkpoint or Hub id;
            auto takes the best that is on this disk.
        compare: further models to compare, comma-separated; "prototype" is the training-free baseline on the model's
            own encoder, an empty string none.
        host: address to listen on; anything but 127.0.0.1 lets others on the network in.
        port: port to listen on; the first free one from 7860 when left out.
        max_upload_mb: largest image file that is accepted, in megabytes.
        device: cpu, cuda, or auto.
        open_browser: open the page in the browser.
        encoder_weights: file with the weights of an encoder that is named as the model, in place of a download.
    """
    # Before the models are loaded, which takes time. Python skips `finally` at SIGTERM unless a handler raises, and
    # then nobody would delete the uploads.
    check_address(host, port)
    with ending_as_by_ctrl_c(), tempfile.TemporaryDirectory(prefix="fsdino-demo-") as uploads:
        keep_offline(uploads)
        studio = open_studio(model, listed(compare), device, encoder_weights)
        page, url = start(studio, host, port, max_upload_mb, open_browser)
        print(f"FS-DINO demo at {url} (Ctrl+C stops it; uploads are deleted then)", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print(f"Others on the network can reach it at {host}: it has no password.", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        # Open pages listen until they are told, and a search in a thread cannot be interrupted: neither is waited for,
        # nor is told what is cut off by that.
        logging.getLogger("uvicorn.error").disabled = True
        page.server.force_exit = True
        page.close(verbose=False)
    sys.stdout.flush()
    os._exit(0)


def check_address(host: str, port: int | None) -> None:
    """Raise a ValueError unless this machine can listen at a port of a host; None is any port."""
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"there is no port {port}; choose one from 1 to 65535, or leave --port out.")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the server does: a port that was closed a moment ago can be had again. On Windows the option would take a
        # port away from whoever holds it.
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except (OSError, TypeError) as error:  # a TypeError, where it is no text of a name
            where = repr(host)[1:-1] if port is None else f"port {port} of {repr(host)[1:-1]}"
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            raise ValueError(f"cannot listen on {where}: {reason}; choose another --port or --host.") from error


@contextmanager
def ending_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl+C does, so that what stands in `finally` is done."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    # Only the main thread may set handlers, Windows has no SIGHUP, and what others set stays (nohup ignores SIGHUP).
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    changed = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def keep_offline(uploads: str) -> None:
    """Tell Gradio and the Hub's client, before they are imported, to call no server, and where uploads go."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(Path(uploads).resolve()),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }


def start(studio: Studio, host: str, port: int | None, max_upload_mb: int, open_browser: bool = False) -> Any:
    """Start the server in threads of its own; gives the running `gradio.Blocks` and its address."""
    # Optional, and read only now: it heeds what `keep_offline` has set only if that came before the import.
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("the demo needs gradio; install it with `pip install fsdino[demo]`.") from error
    from starlette.middleware import Middleware

    from fsdino.demo.page import build_page, page_css, page_theme

    page = build_page(studio, max_upload_mb)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            max_file_size=max_upload_mb * 2**20,
            theme=page_theme(),
            css=page_css(),
            footer_links=[],
            app_kwargs={"middleware": [Middleware(OfflinePolicy)], "docs_url": None, "redoc_url": None},
            **NOTHING_ELSE,
        )
    except OSError as error:
        where = f"port {port}" if port else "a port from 7860 to 7959"
        raise ValueError(f"{where} of {host} is not free; choose another --port or --host.") from error
    return page, url
