"""A real SMTP server on loopback that keeps what it accepts and refuses as told."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import SMTP
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import EmailMessage
    from pathlib import Path


@dataclass
class MailServer:
    """`replies` refuse recipients in turn; with `hangs`, none is ever answered."""

    url: str = ""
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)
    secured: list[bool] = field(default_factory=list)
    hangs: bool = False

    # What aiosmtpd calls, by these names.

    async def handle_RCPT(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any
    ) -> str:
        """Take a recipient or refuse it."""
        if self.hangs:
            await asyncio.sleep(3600)  # longer than any client waits: that is the fault
        self.recipients.append(address)
        if self.replies:
            return self.replies.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """Keep a mail."""
        mail = message_from_bytes(envelope.content, policy=policy.default)
        self.mails.append(mail)
        self.secured.append(session.ssl is not None)
        return "250 kept"


@contextmanager
def mail_server(
    *, host: str = "127.0.0.1", tls: Path | None = None, implicit: bool = False
) -> Iterator[MailServer]:
    """Serve SMTP; with `tls`, a certificate's PEM file, STARTTLS is offered and login wanted.

    With `implicit`, TLS begins with the first byte, as `smtps://` does.
    """
    server = MailServer()
    options: dict[str, Any] = {}
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)

        def login(_mechanism: str, user: bytes, password: bytes) -> bool:
            server.logins.append((user, password))
            return True

        options = {} if implicit else {
            "tls_context": context, "require_starttls": True, "auth_required": True,
            "auth_callback": login,
        }  # fmt: skip
    started = threading.Event()
    stops: list[Callable[[], object]] = []

    async def serve() -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        stops.append(lambda: loop.call_soon_threadsafe(stopping.set))
        listening = await loop.create_server(
            lambda: SMTP(server, hostname=host, loop=loop, **options),
            host,
            0,
            ssl=context if implicit else None,
        )
        server.url = (
            f"{'smtps' if implicit else 'smtp'}://{host}:{listening.sockets[0].getsockname()[1]}"
        )
        started.set()
        await stopping.wait()
        listening.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        stops[0]()
        thread.join(10)


def certificate(path: Path, *, host: str) -> Path:
    """Write a self-signed certificate with its key for an address, and return the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(pem)
    return path
