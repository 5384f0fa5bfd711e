"""Why a file gave nothing, in one line for whoever uploaded it, and what to upload instead.

Owns the words for exports without a conversation; the reader knows what it met. Shows of the file
its keys and a server's own message only, never what was said in it (promise 11).
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.export.conversation import ReadReport

_ERROR_KEYS = ("message", "error", "detail", "error_description")
_UPLOAD = "upload the zip that the chat app sent, or its conversations.json"


def why_nothing(
    name: str,
    report: ReadReport,
    *,
    met: int,
    unrecognised: Mapping[str, int] = MappingProxyType({}),
    error_body: str = "",
    other_products: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """Say in one line why not one conversation came out.

    `met` counts what seemed to be conversations, `unrecognised` what was none, by its keys.
    """
    if others := other_products:
        held = ", ".join(sorted(others, key=lambda product: (-others[product], product))[:5])
        return (
            f"{name}: the Takeout file holds {held} activity but no Gemini prompts; export "
            "My Activity for Gemini Apps"
        )
    if unrecognised and not met:
        if error_body:
            return (
                f"{name}: this is an error answer, not an export ({error_body}); "
                "download the export again"
            )
        keys = next(iter(unrecognised))
        if "data_files" in keys:
            return (
                f"{name}: this only lists the files of an export; download what it calls "
                "conversations-000.zip and memories-000.zip, and upload each"
            )
        return f"{name}: JSON, but no chat export (its objects have the keys {keys}); {_UPLOAD}"
    if met and report.damaged:
        return (
            f"{name}: no conversation could be read; {report.damaged} damaged, first "
            f"{report.damages[0]}; download the export and upload it again"
        )
    if report.empty or report.forgotten:
        parts = [
            f"{report.empty} without a visible message" if report.empty else "",
            f"{report.forgotten} marked not to be remembered" if report.forgotten else "",
        ]
        held = " and ".join(part for part in parts if part)
        return f"{name}: nothing to read in this export: {held}; export again after chatting"
    if report.damaged:
        return (
            f"{name}: nothing could be read ({report.damages[0]}); download the export and "
            "upload it again"
        )
    return f"{name}: the export holds no conversations; {_UPLOAD}"


def error_text(value: dict[Any, Any]) -> str:
    """Read the message of a server's error answer, if the object is one."""
    if not any(key in value for key in ("statusCode", "error", "code", "errors")):
        return ""
    for key in _ERROR_KEYS:
        text = value.get(key)
        if isinstance(text, dict):
            text = text.get("message")
        if isinstance(text, str) and text:
            return json.dumps(text[:120], ensure_ascii=False).strip('"')
    return ""
