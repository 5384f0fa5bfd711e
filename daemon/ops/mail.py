"""The mail to a person whose pass is complete (SMTP_URL; off unless set).

Owns the templates, the look for the address, and one delivery by SMTP: implicit TLS for
`smtps://`, STARTTLS for `smtp://` wherever the server offers it, and always before a password is
sent to another machine. The address is read when it is needed and stands in no log, error or table
(promise 11), so of a server's refusal only the codes are told: its words may hold it.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import asyncpg

from daemon.database import database_errors
from daemon.errors import NeverTold, NotTold, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.database import Pool
    from daemon.ops.outbox import Message

ATTEMPT_SECONDS = 20.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_ENHANCED = re.compile(r"^\s*(\d\.\d{1,3}\.\d{1,3})\b")
_SUBJECT = "Subject:"


class Templates:
    """The words: `completed.txt`, whose first line is the subject, and `completed.html`.

    From a folder, or the ones that come with this package. Placeholders: $conversations, $messages,
    $date.
    """

    def __init__(self, folder: Path | None = None) -> None:
        root = files("daemon.ops") / "templates" if folder is None else folder
        try:
            text = (root / "completed.txt").read_text(encoding="utf-8")
            html = (root / "completed.html").read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise UsageError(
                f"EMAIL_TEMPLATES: must be a folder with completed.txt and completed.html "
                f"({type(error).__name__})"
            ) from None
        subject, _, body = text.partition("\n")
        if not subject.startswith(_SUBJECT):
            raise UsageError(f"EMAIL_TEMPLATES: completed.txt must begin with `{_SUBJECT} …`")
        self._subject = Template(subject.removeprefix(_SUBJECT).strip())
        self._text = Template(body.strip() + "\n")
        self._html = Template(html)
        try:
            self.filled(conversations=0, messages=0, date="")
        except (KeyError, ValueError) as error:
            raise UsageError(f"EMAIL_TEMPLATES: unknown placeholder {error}") from None

    def filled(self, *, conversations: int, messages: int, date: str) -> tuple[str, str, str]:
        """Return subject, plain text and HTML."""
        values = {"conversations": f"{conversations:,}", "messages": f"{messages:,}", "date": date}
        subject, text, html = (
            template.substitute(values) for template in (self._subject, self._text, self._html)
        )
        return subject, text, html


class Mail:
    """Writes to a person, once for each pass that completes."""

    name = "email"
    events = ("completed",)

    def __init__(
        self,
        url: str,
        sender: str,
        templates: Templates,
        pool: Pool,
        *,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> None:
        # Imported only where mail is sent: an idle worker is to stay small.
        import aiosmtplib  # noqa: PLC0415

        self._smtp = aiosmtplib
        self.address = url
        self._sender = sender
        self._templates = templates
        self._pool = pool
        self._attempt_seconds = attempt_seconds

    async def tell(self, message: Message) -> None:
        """Send the mail; raises NeverTold when there is no address or it is refused for good."""
        try:
            async with asyncio.timeout(self._attempt_seconds):
                mail = self._written(message, await self._address_of(message))
                await self._send(mail)
        except (self._smtp.SMTPRecipientsRefused, self._smtp.SMTPResponseException) as error:
            raise self._refusal(error) from None
        except (self._smtp.SMTPException, OSError, ValueError) as error:
            raise NotTold(f"the mail server: {type(error).__name__}") from None

    async def _send(self, mail: EmailMessage) -> None:
        parts = urlsplit(self.address)
        secure = parts.scheme.lower() == "smtps"
        password = unquote(parts.password) if parts.password else None
        client = self._smtp.SMTP(
            hostname=parts.hostname,
            port=parts.port or (465 if secure else 587),
            use_tls=secure,
            start_tls=False,
            tls_context=ssl.create_default_context(),
            timeout=self._attempt_seconds,
            # Not this machine's name, which DNS would be asked for and nobody need know.
            local_hostname=parseaddr(self._sender)[1].rpartition("@")[2].encode("idna").decode(),
        )
        try:
            await client.connect()
            if not secure:
                await client.ehlo()
                if client.supports_extension("starttls"):
                    await client.starttls()
                elif password is not None and parts.hostname not in _LOOPBACK:
                    raise NotTold("the mail server offers no TLS, so no password is sent to it")
            if password is not None:
                await client.login(unquote(parts.username or ""), password)
            await client.send_message(mail)
        finally:
            client.close()

    def _refusal(self, error: Exception) -> NotTold:
        """Tell a refusal by its codes: final for 5xx, except where the settings are at fault."""
        if isinstance(error, self._smtp.SMTPRecipientsRefused):
            (error, *_) = error.recipients
        assert isinstance(error, self._smtp.SMTPResponseException)  # noqa: S101 - told apart above
        enhanced = _ENHANCED.match(str(error.message))
        codes = f"{error.code}{' ' + enhanced[1] if enhanced else ''}"
        said = f"the mail server refused it: {codes} ({type(error).__name__})"
        about_us = (
            self._smtp.SMTPAuthenticationError, self._smtp.SMTPHeloError,
            self._smtp.SMTPConnectError, self._smtp.SMTPConnectResponseError,
            self._smtp.SMTPSenderRefused,
        )  # fmt: skip
        if error.code >= 500 and not isinstance(error, about_us):
            return NeverTold(said)
        return NotTold(said)

    async def _address_of(self, message: Message) -> str:
        """Read the person's address; nobody is written to about a pass they did not ask for."""
        with database_errors():
            backfilled = await self._pool.fetchval(
                "select exists (select from fullpass.job_events "
                "where job_id = $1 and event = 'backfilled')",
                message.job_id,
            )
            if backfilled:
                raise NeverTold("the pass was queued by backfill, so nobody waits for it")
            try:
                address: str | None = await self._pool.fetchval(
                    "select email from auth.users where id = $1", message.user_id
                )
            except (
                asyncpg.InvalidSchemaNameError, asyncpg.UndefinedTableError,
                asyncpg.UndefinedColumnError, asyncpg.InsufficientPrivilegeError,
            ):  # fmt: skip
                raise NeverTold(
                    "auth.users (id, email) may not be read; docs/security.md has the grant"
                ) from None
        if not address:
            raise NeverTold("no address is known of this person")
        return address

    def _written(self, message: Message, address: str) -> EmailMessage:
        subject, text, html = self._templates.filled(
            conversations=message.data.get("conversations") or 0,
            messages=message.data.get("messages") or 0,
            date=message.at.strftime("%Y-%m-%d"),
        )
        name, sender = parseaddr(self._sender)
        mail = EmailMessage(policy=SMTP)
        try:
            local, _, domain = address.strip().rpartition("@")
            # Not every server takes other letters than ASCII; every domain can be spelt in it.
            mail["To"] = Address(addr_spec=f"{local}@{domain.encode('idna').decode()}")
        except (HeaderParseError, ValueError, IndexError):
            raise NeverTold("the person's address is not one that mail can be sent to") from None
        mail["From"] = Address(display_name=name, addr_spec=sender)
        mail["Subject"] = subject
        mail["Date"] = format_datetime(message.at)
        # The same at every attempt: whoever gets it twice can tell.
        mail["Message-ID"] = f"<{message.id.hex}@{sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text)
        mail.add_alternative(html, subtype="html")
        return mail
