"""What Supabase Storage means by an error: nearly all come as HTTP 400 with the truth in the body.

Owns the translation into the tree of errors.py: whether the object, this moment or the settings are
at fault. Shows of the body only its own short message, which holds no secret (promise 11).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NoReturn

from daemon.errors import BadExport, Systemic, TryAgain, Wait

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_WAIT_SECONDS = 300.0
_KEY_WORDS = ("signature", "jws", "jwt", "exp", "claim", "unauthorized", "apikey", "api key")


def raise_for(
    status: int, body: bytes, headers: Mapping[str, str], name: str, *, signed: bool
) -> NoReturn:
    """Raise what an answer other than 200 or 206 means for the job of the object `name`.

    `signed`: it was asked for by a signed URL, which carries its own key.
    """
    told = _told(body)
    inner = told.get("statusCode", "")
    code = int(inner) if inner.isdecimal() else status
    message = (told.get("message") or told.get("error") or "")[:160]
    words = f"{message} {told.get('error', '')} {told.get('code', '')}".casefold()
    if code in {301, 302, 307, 308}:
        raise Systemic("Storage answers with a redirect; correct SUPABASE_URL", seconds=60.0)
    if code == 429:
        raise Wait(f"Storage asks to wait ({_or(message, '429')})", seconds=_pause(headers, 30.0))
    if code in {502, 503, 504, 540, 544} or 520 <= code <= 530:  # of Storage, its gateway, its edge
        raise Wait(f"Storage is unwell ({_or(message, str(code))})", seconds=_pause(headers, 15.0))
    if code >= 500:
        # One object whose bytes are gone answers 500 as well: count the attempt.
        raise TryAgain(f"{name}: Storage failed to give it ({_or(message, str(code))})")
    if code == 413:
        raise BadExport(f"{name}: Storage refuses it as too large; split the export")
    if "bucket not found" in words or told.get("code") == "NoSuchBucket":
        bucket = name.partition("/")[0]
        raise BadExport(f"{name}: Storage has no bucket {bucket}; check the job's storage_path")
    if code == 404 and not told:
        raise Systemic(
            "SUPABASE_URL leads to no Storage service (404); set it to the project's URL",
            seconds=60.0,
        )
    if code == 404 and message.startswith("Route "):
        raise Systemic("SUPABASE_URL leads to no Storage route; correct it", seconds=60.0)
    if code in {401, 403} or (code == 400 and any(word in words for word in _KEY_WORDS)):
        if signed:
            raise BadExport(f"{name}: its signed URL is no longer valid; enqueue bucket/path")
        raise Systemic(
            f"Storage refuses SUPABASE_SERVICE_KEY ({_or(message, str(code))}); check the key and "
            "that it belongs to SUPABASE_URL",
            seconds=60.0,
        )
    if code == 404:
        raise BadExport(
            f"{name}: Storage has no such object; check the job's storage_path and that the upload "
            "finished"
        )
    raise TryAgain(f"{name}: Storage answers {code} ({_or(message, 'no message')})")


def _told(body: bytes) -> dict[str, str]:
    """Read the body's fields as text; nothing where it is no JSON object."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {str(key): str(part) for key, part in value.items() if isinstance(part, str | int)}


def _or(message: str, otherwise: str) -> str:
    return " ".join(message.split()) or otherwise


def _pause(headers: Mapping[str, str], otherwise: float) -> float:
    """Obey Retry-After within reason."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return otherwise
    return min(_LONGEST_WAIT_SECONDS, seconds) if seconds > 0 else otherwise
