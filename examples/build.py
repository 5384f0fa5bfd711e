"""Builds examples/conversations.json and examples/truth.json from examples/conversations.txt.

The text file is what people read and edit; the two JSON files are what programs read, and both are
committed. Ids and times follow from the text alone, so building twice changes nothing. The shape is
that of a ChatGPT export of 2026: a tree of nodes, of which `current_node` names the visible leaf.

    python examples/build.py            # the two JSON files
    python examples/build.py --memory   # and MEMORY.md, as `fullpass run` writes it without a model
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

HERE = Path(__file__).resolve().parent
SECONDS_BETWEEN_MESSAGES = 47.25
Json = dict[str, Any]


@dataclass
class Definitions:
    """Texts that several conversations share, by name."""

    profile: dict[str, str] = field(default_factory=dict)
    wishes: dict[str, str] = field(default_factory=dict)
    memories: str = ""


def stable_id(*parts: object) -> str:
    """Return the same UUID for the same parts, on every machine."""
    return str(uuid5(NAMESPACE_URL, "fullpass-example/" + "/".join(map(str, parts))))


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Split `@kind argument` blocks: (kind, argument, body)."""
    pieces = re.split(r"^@(\w[\w-]*)(?: ([^\n]*))?\n", text, flags=re.MULTILINE)
    rows = zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True)
    return [(kind, argument or "", body.strip("\n")) for kind, argument, body in rows]


class Tree:
    """The growing mapping of one conversation; `tip` is where the next message is attached."""

    def __init__(self, title: str, start: datetime, *, untimed: bool) -> None:
        self.id = stable_id(title)
        self.title = title
        self.at = start.timestamp()
        self.untimed = untimed
        self.mapping: dict[str, Json] = {}
        self.branch_points: list[str] = []
        self.tip = stable_id(self.id, "root")
        self.mapping[self.tip] = {"id": self.tip, "message": None, "parent": None, "children": []}

    def add(
        self,
        role: str,
        content: Json,
        *,
        name: str | None = None,
        recipient: str = "all",
        metadata: Json | None = None,
        hidden: bool = False,
    ) -> None:
        """Attach one message under the tip and move the tip to it."""
        node_id = stable_id(self.id, len(self.mapping))
        timeless = hidden or self.untimed
        if not hidden:
            self.at += SECONDS_BETWEEN_MESSAGES
        extra: Json = {"is_visually_hidden_from_conversation": True} if hidden else {}
        if role == "assistant":
            extra["model_slug"] = "gpt-4o" if self.at < 1_754_000_000 else "gpt-5"
        message: Json = {
            "id": node_id,
            "author": {"role": role, "name": name, "metadata": {}},
            "create_time": None if timeless else self.at,
            "update_time": None,
            "content": content,
            "status": "finished_successfully",
            "end_turn": True if role == "assistant" and recipient == "all" else None,
            "weight": 0.0 if hidden else 1.0,
            "metadata": extra | (metadata or {}),
            "recipient": recipient,
            "channel": None,
        }
        parent = self.tip
        self.mapping[node_id] = {
            "id": node_id,
            "message": message,
            "parent": parent,
            "children": [],
        }
        self.mapping[parent]["children"].append(node_id)
        self.tip = node_id


def text_content(body: str) -> Json:
    """Return the plain content of one text message."""
    return {"content_type": "text", "parts": [body]}


def add_context(tree: Tree, name: str, shared: Definitions) -> None:
    """Add the hidden custom instructions that open a conversation."""
    content = {
        "content_type": "user_editable_context",
        "user_profile": shared.profile[name],
        "user_instructions": shared.wishes[name],
    }
    about = {"about_user_message": content["user_profile"]}
    about["about_model_message"] = content["user_instructions"]
    flags = {"user_context_message_data": about, "is_user_system_message": True}
    tree.add("user", content, metadata=flags, hidden=True)


def add_message(tree: Tree, kind: str, argument: str, body: str) -> None:
    """Attach one block of the text file as the node that an export would hold."""
    match kind:
        case "user" | "assistant":
            tree.add(kind, text_content(body))
        case "system":
            tree.add("system", text_content(""), hidden=True)
        case "code":
            code = {"content_type": "code", "language": "python", "text": body}
            tree.add("assistant", code, recipient="python")
        case "output":
            tree.add("tool", {"content_type": "execution_output", "text": body}, name="python")
        case "browse":
            code = {"content_type": "code", "language": "unknown", "text": body}
            tree.add("assistant", code, recipient="browser")
        case "page":
            page = {"content_type": "tether_browsing_display", "result": body}
            tree.add("tool", page, name="browser")
        case "quote":
            url, title = argument.split(" | ")
            content = {"content_type": "tether_quote", "url": url, "domain": "example.org"}
            tree.add("tool", content | {"text": body, "title": title}, name="browser")
        case "bio":
            tree.add("assistant", text_content(body), recipient="bio")
        case "bio-saved":
            tree.add("tool", text_content("Model set context updated."), name="bio")
        case "image":
            pointer = {
                "content_type": "image_asset_pointer",
                "asset_pointer": "file-service://file-" + stable_id(tree.id, "image")[:8],
                "size_bytes": 184_320,
                "width": 1170,
                "height": 2532,
            }
            tree.add("user", {"content_type": "multimodal_text", "parts": [pointer, body]})
        case "voice":
            speech = {"content_type": "audio_transcription", "text": body, "direction": "in"}
            audio = {
                "content_type": "audio_asset_pointer",
                "asset_pointer": "file-service://file-" + stable_id(tree.id, body)[:8],
                "format": "wav",
            }
            tree.add("user", {"content_type": "multimodal_text", "parts": [speech, audio]})
        case _:
            raise ValueError(f"unknown block @{kind} in {tree.title!r}")


def build_conversation(header: str, text: str, shared: Definitions, truth: Json) -> Json:
    """Read one `=== time | title | flags` conversation and note its truths and traps."""
    when, title, *flags = header.split(" | ")
    start = datetime.fromisoformat(when).replace(tzinfo=UTC)
    tree = Tree(title, start, untimed="untimed" in flags)
    tree.add("system", text_content(""), hidden=True)
    for flag in flags:
        if flag.startswith("instructions="):
            add_context(tree, flag.partition("=")[2], shared)
        elif flag == "saved":
            content = {"content_type": "model_editable_context", "repository": None}
            content |= {"model_set_context": shared.memories, "structured_context": None}
            tree.add("assistant", content, hidden=True)
    for kind, argument, body in blocks(text):
        if kind == "branch":
            tree.branch_points.append(tree.tip)
        elif kind == "end":
            tree.tip = tree.branch_points.pop()
        elif kind in ("truth", "trap", "acceptable"):
            note(truth, kind, argument, body, tree)
        else:
            add_message(tree, kind, argument, body)
    return {
        "id": tree.id,
        "conversation_id": tree.id,
        "title": title,
        "create_time": None if tree.untimed else start.timestamp(),
        "update_time": None if tree.untimed else tree.at,
        "mapping": tree.mapping,
        "current_node": tree.tip,
        "moderation_results": [],
        "plugin_ids": None,
        "conversation_template_id": None,
        "gizmo_id": None,
        "is_archived": False,
        "is_do_not_remember": "forget" in flags,
        "memory_scope": "global_enabled",
        "safe_urls": [],
        "default_model_slug": "gpt-4o" if start.year < 2026 else "gpt-5",
        "voice": None,
    }


def note(truth: Json, kind: str, argument: str, body: str, tree: Tree) -> None:
    """Keep one truth, acceptable sentence or trap; its sentence must stand in the conversation."""
    lines = body.split("\n")
    sentence = lines[1] if kind == "truth" else lines[0]
    shown = json.dumps(list(tree.mapping.values()), ensure_ascii=False)
    if json.dumps(sentence, ensure_ascii=False)[1:-1] not in shown:
        raise ValueError(f"{tree.title!r} does not say {sentence!r}")
    if kind == "truth":
        category, state = argument.split()
        row = {"category": category, "statement": lines[0], "sentence": sentence}
        truth["truths"].append(row | {"conversation_id": tree.id, "current": state == "current"})
    elif kind == "trap":
        truth["traps"].append({"sentence": sentence, "why": lines[1], "conversation_id": tree.id})
    else:
        truth["acceptable"].append({"sentence": sentence, "conversation_id": tree.id})


def build(source: str) -> tuple[list[Json], Json]:
    """Return the conversations, newest first as in a real export, and what is true in them."""
    preamble, *rest = re.split(r"^=== (.*)\n", source, flags=re.MULTILINE)
    shared = Definitions()
    for kind, argument, body in blocks(preamble):
        if kind == "memories":
            shared.memories = body
        else:
            getattr(shared, kind)[argument] = body
    truth: Json = {"truths": [], "acceptable": [], "traps": []}
    conversations = [
        build_conversation(header, text, shared, truth)
        for header, text in zip(rest[::2], rest[1::2], strict=True)
    ]
    return conversations[::-1], truth


def memory(export: Path) -> str:
    """Run a pass over the export without a model, on a database of its own; return its MEMORY."""
    with tempfile.TemporaryDirectory(prefix="fullpass-example-") as folder:
        plain = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG", "TMPDIR"}}
        subprocess.run(  # noqa: S603 - its own command
            [sys.executable, "-m", "daemon", "run", export, "--user", stable_id("Inês"),
             "--out", folder],
            cwd=HERE.parent, check=True, capture_output=True,
            env=plain | {"LLM_PROVIDER": "offline", "FULLPASS_HOME": f"{folder}/home"},
        )  # fmt: skip
        return (Path(folder) / "MEMORY.md").read_text(encoding="utf-8")


def main() -> None:
    """Write the files beside the text they come from."""
    conversations, truth = build((HERE / "conversations.txt").read_text(encoding="utf-8"))
    for name, value in (("conversations.json", conversations), ("truth.json", truth)):
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        (HERE / name).write_text(text, encoding="utf-8")
    if "--memory" in sys.argv:
        (HERE / "MEMORY.md").write_text(memory(HERE / "conversations.json"), encoding="utf-8")
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in truth.items())
    print(f"{len(conversations)} conversations, {counts}")


if __name__ == "__main__":
    main()
