"""Small exports of every shape, made in code, and one way to read them: for the export tests."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.export.reader import ExportReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.export.conversation import Conversation, ReadReport
    from daemon.export.streams import Limits

FIXTURES = Path(__file__).parents[1] / "fixtures" / "exports"
START = 1_700_000_000


def node(
    key: str,
    role: str | None,
    text: Any,
    *,
    parent: str | None = None,
    at: Any = START,
    content_type: str = "text",
    content: dict[str, Any] | None = None,
    **message: Any,
) -> dict[str, Any]:
    """One node of a ChatGPT conversation, without children."""
    name = message.pop("name", None)
    return {
        "id": key,
        "parent": parent,
        "children": [],
        "message": {
            "id": key,
            "author": {"role": role, "name": name, "metadata": {}},
            "create_time": at,
            "content": content or {"content_type": content_type, "parts": [text]},
            "weight": 1.0,
            "recipient": "all",
            "metadata": {},
            **message,
        },
    }


def chatgpt(own_id: str, *nodes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A ChatGPT conversation: nodes that name no parent follow one another."""
    mapping: dict[str, Any] = {}
    before: str | None = None
    for each in nodes:
        if each["parent"] is None:
            each["parent"] = before
        if each["parent"] in mapping:
            mapping[each["parent"]]["children"].append(each["id"])
        mapping[each["id"]] = each
        before = each["id"]
    return {
        "title": f"About {own_id}",
        "create_time": START + 0.5,
        "update_time": START + 60,
        "mapping": mapping,
        "current_node": before,
        "conversation_id": own_id,
        "id": own_id,
        **fields,
    }


def talk(own_id: str, *texts: str, **fields: Any) -> dict[str, Any]:
    """A ChatGPT conversation in which the person and the model take turns."""
    nodes = [
        node(f"{own_id}-{i}", "assistant" if i % 2 else "user", text, at=START + i)
        for i, text in enumerate(texts or ("Hello from me", "Hello from the model"))
    ]
    return chatgpt(own_id, *nodes, **fields)


def claude(own_id: str, *texts: str, **fields: Any) -> dict[str, Any]:
    """A Claude conversation in which the person and the model take turns."""
    return {
        "uuid": own_id,
        "name": f"About {own_id}",
        "created_at": "2025-01-14T09:30:00.000Z",
        "updated_at": "2025-01-14T09:35:00.000Z",
        "chat_messages": [
            {
                "uuid": f"{own_id}-{i}",
                "sender": "assistant" if i % 2 else "human",
                "text": text,
                "content": [{"type": "text", "text": text}],
                "created_at": f"2025-01-14T09:3{i % 6}:00Z",
                "attachments": [],
            }
            for i, text in enumerate(texts or ("Hello from me", "Hello from the model"))
        ],
        **fields,
    }


def dump(value: Any, **options: Any) -> bytes:
    """JSON bytes."""
    return json.dumps(value, **options).encode("utf-8", "surrogatepass")


def zipped(members: Mapping[str, bytes], *, stored: bool = False) -> bytes:
    """A zip of these members."""
    buffer = io.BytesIO()
    method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def gzipped(content: bytes) -> bytes:
    """A gzip of this content."""
    return gzip.compress(content, 6)


def read(
    folder: Path, content: bytes, *, name: str = "conversations.json", limits: Limits | None = None
) -> tuple[list[Conversation], ReadReport]:
    """Read an export from these bytes; what it raises goes through."""
    path = folder / "export"
    path.write_bytes(content)
    reader = ExportReader(path, name=name, limits=limits)
    return list(reader), reader.report
