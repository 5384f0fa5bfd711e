"""Starts the dashboard on an address, and refuses one where it would be open to strangers."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.dashboard.guard import Access
from daemon.cli.dashboard.site import application
from daemon.cli.target import known_database, settings_and_logs
from daemon.database import open_pool
from daemon.errors import UsageError
from daemon.logs import mask_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    import uvicorn

_CONNECTIONS = 3
_AT_ONCE = 64
_SHORTEST_TOKEN = 16
_ASKING_SECONDS = 10.0
"""For a visitor to finish a question; the library itself would let them sit for ever."""


def serve_dashboard(
    *, host: str, port: int, token: str | None, allow_hosts: tuple[str, ...]
) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    settings = settings_and_logs(quiet=True)
    if token is None and settings.dashboard_token is not None:
        token = settings.dashboard_token.get_secret_value()
    if token is not None:
        mask_secrets(token)
    require_safety(host, token)
    access = Access(names=frozenset(name.lower() for name in (host, *allow_hosts)), token=token)
    with bound(host, port) as listener, known_database(settings) as url:
        asyncio.run(_until_signalled(url, listener, access))
    return 0


def require_safety(host: str, token: str | None) -> None:
    """Raise UsageError where anybody on a network could look, and where the library is missing."""
    if token is not None and len(token) < _SHORTEST_TOKEN:
        raise UsageError(f"DASHBOARD_TOKEN: must have at least {_SHORTEST_TOKEN} characters")
    if token is None and not _is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached by others: set DASHBOARD_TOKEN "
            f"(at least {_SHORTEST_TOKEN} characters), or leave it at 127.0.0.1"
        )
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UsageError(
            "the dashboard needs its extra: pip install 'fullpass[dashboard]'"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Give a listening socket. Raises UsageError when the address cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror or error}") from None
    with listener:
        yield listener


async def _until_signalled(url: str, listener: socket.socket, access: Access) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    name, port = listener.getsockname()[:2]
    at = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    behind = " (behind its token)" if access.token else ""
    click.echo(f"dashboard on http://{at}/{behind}; Ctrl-C ends it")
    await serve_on(url, listener, access, stop)


async def serve_on(url: str, listener: socket.socket, access: Access, stop: asyncio.Event) -> None:
    """Serve the database at `url` on a listening socket until `stop` is set."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave signals to the command, so that an embedded Postgres under it ends well too.

            uvicorn would raise a signal again once it has served, and so end the process.
            """
            yield

    pool = await open_pool(url, size=_CONNECTIONS, command_timeout_seconds=10.0)
    try:
        config = uvicorn.Config(
            application(pool, access),
            access_log=False, log_config=None, server_header=False, lifespan="off", ws="none",
            limit_concurrency=_AT_ONCE, timeout_graceful_shutdown=3,
        )  # fmt: skip
        server = Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        clearing = asyncio.create_task(_see_off_sitters(server))
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stopping.cancel()
        clearing.cancel()
        await serving
    finally:
        pool.terminate()


async def _see_off_sitters(server: uvicorn.Server) -> None:
    """Close connections that ask nothing, before they take every place there is."""
    since: dict[tuple[Any, Any], float] = {}
    while True:
        await asyncio.sleep(_ASKING_SECONDS / 10)
        now = time.monotonic()
        links: set[Any] = server.server_state.connections
        asked = [(link, link.cycle) for link in links]  # a cycle is one question and its answer
        idle = [(link, last) for link, last in asked if last is None or last.response_complete]
        since = {key: since.get(key, now) for key in idle}
        for (link, _), at in since.items():
            if now - at > _ASKING_SECONDS:
                link.transport.abort()
