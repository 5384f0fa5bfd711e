"""URLs as settings hold them: checked for their form, and fit to be shown.

Owns where a URL keeps what must not be seen: the password of a database, the path of a webhook
(promise 11). Takes them as people write them, also with a password that nobody has escaped. Leaves
to others whether anybody answers there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

POSTGRES = ("postgres", "postgresql")
WEB = ("http", "https")
MAIL = ("smtp", "smtps")

_MASK = "***"


def checked_url(value: str | None, schemes: tuple[str, ...], example: str) -> str | None:
    """Return `value` if it is a URL of one of the schemes with a host where one is needed.

    Raises ValueError with `example`, which shows the form; never with the value, which may hold a
    password.
    """
    if value is None:
        return None
    scheme, separator, rest = value.partition("://")
    # A libpq URL may leave the host out (a local socket); a web or mail address cannot.
    hostless = schemes is not POSTGRES and not rest.rpartition("@")[2].strip("/")
    if not separator or scheme.lower() not in schemes or hostless or re.search(r"\s", value):
        raise ValueError(f"must look like {example}")
    return value


def hide_password(url: str) -> str:
    """Return the URL fit to be shown: the password, in the authority or the query, as `***`."""
    shown = url
    authority = _authority(url)
    if authority is not None:
        user, _, password = authority.partition(":")
        if password:
            shown = shown.replace(f"{authority}@", f"{user}:{_MASK}@", 1)
    return re.sub(r"(?i)([?&][^=&]*password=)[^&]*", rf"\1{_MASK}", shown)


def hide_path(url: str) -> str:
    """Return scheme and host only: a webhook's path and query are its password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    plain = parts.path in {"", "/"} and not parts.query and "@" not in parts.netloc
    return url if plain else f"{parts.scheme}://{host}/{_MASK}"


def secrets_in(url: str) -> Iterable[str]:
    """Yield every password in a URL, decoded; that before the host also as it stands there."""
    password = (_authority(url) or "").partition(":")[2]
    yield from (password, unquote(password))
    for name, value in parse_qsl(url.partition("?")[2]):
        if name.lower().endswith("password"):
            yield value


def _authority(url: str) -> str | None:
    """Return `user:password` of a URL; None if it has none.

    Looks for the last `@` before the query, so that a password with an unescaped `/` or `@`, which
    a strict parser would tear apart and show, is still recognised as one.
    """
    rest = url.partition("://")[2]
    for part in (rest.partition("?")[0], rest):
        user_and_password, at, _ = part.rpartition("@")
        if at:
            return user_and_password
    return None
