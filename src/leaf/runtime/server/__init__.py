"""`leaf serve`: an encoder behind OpenAI's `/v1/embeddings`, on one small machine.

    from leaf.runtime.encoder import OnnxEncoder
    from leaf.runtime.server import Settings, serve
    serve(OnnxEncoder("runs/demo/student-2l"), Settings(port=8000))

`settings` is what it can be told, `protocol` what requests and answers look like, `batching` how many connections
share one encoder, `metrics` what Prometheus sees, `app` the routes. FastAPI, uvicorn and prometheus-client come with
the extra `serve` and are imported only when serving.
"""

import importlib.util
import os
import signal
import socket
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from leaf.encoder import Encoder
from leaf.errors import LeafError, Stopped
from leaf.progress import say
from leaf.runtime.server.settings import API_KEY_VARIABLE, Settings
from leaf.space import Space

if TYPE_CHECKING:
    import uvicorn

    from leaf.runtime.server.app import Extend

__all__ = ["Settings", "create_app", "serve"]

#: Connections that may wait to be accepted while the event loop is busy.
BACKLOG = 2048
#: Seconds that an idle connection is kept: more than the minute after which proxies and clients drop theirs, since the
#: side that closes first decides whether a request is lost.
KEEP_ALIVE = 75
OPEN_FILES = 65_536


def check_installed() -> None:
    """Raises `LeafError` without the extra `serve`."""
    try:
        from leaf.runtime.server import app as app
    except ImportError as error:
        raise LeafError(f"serving needs {error.name}: pip install 'leaf[serve]'") from error
    # uvicorn is looked for here as well, so that it is missed before a model is measured.
    if importlib.util.find_spec("uvicorn") is None:
        raise LeafError("serving needs uvicorn: pip install 'leaf[serve]'")


def create_app(
    encoder: Encoder, settings: Settings, *, space: Space | None = None, extend: "Extend | None" = None
) -> Any:
    """The ASGI application (a `FastAPI`) that serves `encoder`, with the routes that `extend` adds.

    Raises `LeafError` without the extra `serve`, or when the encoder has left `space`.
    """
    check_installed()
    from leaf.runtime.server import app

    return app.create_app(encoder, settings, space=space, extend=extend)


def serve(encoder: Encoder, settings: Settings | None = None, *, space: Space | None = None) -> None:
    """Serves `encoder` until SIGTERM or Ctrl-C, then finishes what is in flight and returns.

    `space` is the space that the model claims: the canaries are checked before the port opens, and `GET /v1/space`
    hands them on. Raises `LeafError` without the extra `serve`, for a model outside its space and for a taken port.
    """
    settings = settings or Settings()
    app = create_app(encoder, settings, space=space)
    space_words = f"space {space.id}" if space else "no space.json"
    run(app, settings, f"{(settings.names or (encoder.name,))[0]} ({encoder.dim}-d, {space_words})", "/v1")


def run(app: Any, settings: Settings, what: str, path: str) -> None:
    """Serves `app` until SIGTERM or Ctrl-C; says that `what` is at `path`. Raises `LeafError` for a taken port."""
    listener = listen(settings.host, settings.port)
    raise_file_limit()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"serving {what} at http://{shown}:{port}{path}")
    if settings.api_key is None and not host.startswith("127.") and host != "::1":
        say(f"anyone who reaches {shown}:{port} can use it: set {API_KEY_VARIABLE} to ask for a key")
    server = web_server(app, settings)
    in_main_thread = threading.current_thread() is threading.main_thread()
    # uvicorn raises the signal again when it has shut down, which would end this process with an error status.
    previous = signal.signal(signal.SIGTERM, _stop) if in_main_thread else None
    try:
        server.run(sockets=[listener])
    except (Stopped, KeyboardInterrupt):
        pass
    finally:
        listener.close()
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def web_server(app: Any, settings: Settings) -> "uvicorn.Server":
    """The uvicorn server that `serve` runs."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(settings.grace)),
        )
    )


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`. Raises `LeafError` where that is impossible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol must be said (socket.create_server does not): asyncio turns Nagle's algorithm off only on sockets
    # that say TCP, and with it on, every answer waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere the option would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = error.strerror or error
        raise LeafError(f"cannot listen on {host} port {port} ({why}); choose another --port or --host") from error
    return listener


def raise_file_limit() -> None:
    """Lets this process hold more connections than the 256 open files that some systems begin with."""
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
