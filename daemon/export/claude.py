"""Claude's shape of a conversation, with the memory it keeps of the person beside it.

Owns blocks, attachments and branches, and `memories.json`. Pasted long text lives in an attachment
and comes out as a `quote`: it may be anybody's words, so no fact may rest on it alone (promise 12).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.export.conversation import Conversation, Message
from daemon.export.spool import Spool, SpooledMessages, collected
from daemon.export.values import (
    DecodeError,
    clean,
    decode,
    fold,
    identifier,
    list_of,
    mapping_of,
    past_time_of,
    short_hash,
    time_of,
    title_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from daemon.export.conversation import ReadReport, Role
    from daemon.export.members import Member
    from daemon.export.spool import Collected, Room

_ROLES: dict[str, Role] = {"human": "user", "user": "user", "assistant": "assistant"}
_LINKS = ("uuid", "parent_message_uuid", "created_at")
_ROOT = "00000000-0000-4000-8000-000000000000"
"""What a first message names as its parent."""
_MEMORIES = frozenset({"conversations_memory", "project_memories", "memory_files"})
_NOT_SPOKEN = frozenset(
    {
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "server_tool_use",
        "web_search_tool_result",
        "token_budget",
        "flag",
        "injected_prompt_block",  # the app's own note of the date, within the person's message
        "image",
        "document",
    }
)


def is_claude(value: dict[str, Any]) -> bool:
    """Say whether a decoded object is a conversation, memories or a project of Claude's."""
    if "chat_messages" in value or is_memories(value):
        return True
    return "uuid" in value and "name" in value and not value.get("messages")


def is_memories(value: dict[str, Any]) -> bool:
    """Say whether a decoded object is Claude's memory of the person."""
    return not _MEMORIES.isdisjoint(value)


class ClaudeReader:
    """Turns exported objects into conversations; remembers which memories it has yielded."""

    def __init__(self, report: ReadReport) -> None:
        self._report = report
        self._seen_memories: set[str] = set()

    def read_object(
        self, raw: memoryview, place: str, *, strict: bool = False
    ) -> Iterator[Conversation]:
        """Yield what one exported object holds; raises DecodeError."""
        value = decode(raw, strict=strict)
        if not isinstance(value, dict):
            raise DecodeError("not an object")
        if is_memories(value):
            yield from self._memories(value, place)
        elif "chat_messages" not in value and ("docs" in value or "prompt_template" in value):
            self._report.ignore("project documents")
        else:
            exported = [m for m in list_of(value.get("chat_messages")) if isinstance(m, dict)]
            messages: list[Message] = []
            yield from self._conversation(value, exported, place, messages, lambda raw: raw)

    def read_members(
        self, members: Iterable[Member], place: str, room: Room
    ) -> Iterator[Conversation]:
        """Yield the conversation of an object too large to be held; raises DecodeError.

        Its messages wait on disk until the branch is known; of each only its links are held.
        """
        value: dict[str, Any] = {}
        exported: list[dict[str, Any]] = []
        spool = Spool(room)
        for within, key, raw in members:
            if within == "chat_messages":
                message = decode(raw)
                if isinstance(message, dict):
                    stub = {name: message[name] for name in _LINKS if name in message}
                    exported.append({**stub, "": spool.append(raw)})
            elif raw and not within:
                value[key] = decode(raw)
        yield from self._conversation(
            value, exported, place, SpooledMessages(room), lambda stub: decode(spool[stub[""]])
        )
        spool.close()

    def _memories(self, value: dict[str, Any], place: str) -> Iterator[Conversation]:
        self._report.memories = True
        whole_at = time_of(value.get("updated_at")) or time_of(value.get("created_at"))
        texts = [("Claude's memory", value.get("conversations_memory"), whole_at)]
        texts += [
            ("Claude's memory of a project", text, whole_at)
            for text in mapping_of(value.get("project_memories")).values()
        ]
        for file in map(mapping_of, list_of(value.get("memory_files"))):
            at = time_of(file.get("updated_at")) or time_of(file.get("created_at")) or whole_at
            name = title_of(file.get("path"))
            texts.append((f"Claude's memory: {name}".rstrip(": "), file.get("content"), at))
        for title, raw, at in texts:
            text = clean(raw).strip()
            entry_id = f"memory:{short_hash(fold(text))}"
            if not text or entry_id in self._seen_memories:
                continue
            self._seen_memories.add(entry_id)
            yield Conversation(
                source="claude",
                id=entry_id,
                title=title,
                messages=(Message(entry_id, "memory", text, at),),
                created_at=at,
                place=place,
            )

    def _conversation(
        self,
        value: dict[str, Any],
        exported: list[dict[str, Any]],
        place: str,
        messages: Collected,
        load: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> Iterator[Conversation]:
        own_id = identifier(value.get("uuid"))
        for raw in self._path(exported, identifier(value.get("current_leaf_message_uuid")), place):
            for message in self._messages(load(raw), own_id, len(messages)):
                messages.append(message)
        if not messages:
            self._report.empty += 1
            return
        if not own_id:
            own_id = short_hash("claude", value.get("created_at"), messages[0].text)
        yield Conversation(
            source="claude",
            id=own_id,
            title=title_of(value.get("name")),
            messages=collected(messages),
            created_at=time_of(value.get("created_at")),
            updated_at=past_time_of(value.get("updated_at")),
            place=place,
        )

    def _path(
        self, exported: list[dict[str, Any]], current: str, place: str
    ) -> list[dict[str, Any]]:
        """List the messages of the latest branch, in reading order.

        Older exports name no parents, and older messages of a newer one neither: such a message
        follows the one before it in the file, as does one whose parent is not there.
        """
        keys = [identifier(m.get("uuid")) or f"#{index}" for index, m in enumerate(exported)]
        known = {key: index for index, key in enumerate(keys)}
        named = [identifier(m.get("parent_message_uuid")) for m in exported]
        if not any(parent in known for parent in named):
            return exported
        parents: list[int | None] = []
        for index, parent in enumerate(named):
            if parent in known:
                parents.append(known[parent])
            else:
                begins = not index or parent in {_ROOT, named[0] or _ROOT}
                parents.append(None if begins else index - 1)
        at: int | None = known.get(current)
        if at is None:
            inner = set(parents)
            leaves = [i for i in range(len(exported)) if i not in inner] or [len(exported) - 1]
            at = max(leaves, key=lambda i: (_moment(exported[i]), i))
        path: list[dict[str, Any]] = []
        visited: set[int] = set()
        while at is not None:
            if at in visited:
                self._report.damage(place, "its messages form a loop; read once around")
                break
            visited.add(at)
            path.append(exported[at])
            at = parents[at]
        path.reverse()
        return path

    def _messages(
        self, raw: dict[str, Any], conversation_id: str, ordinal: int
    ) -> Iterator[Message]:
        role = _ROLES.get(clean(raw.get("sender")))
        if role is None:
            if raw.get("sender") is not None:
                self._report.unknown(f"sender {clean(raw.get('sender'))}")
            return
        at = time_of(raw.get("created_at"))
        text = self._text(raw)
        message_id = identifier(raw.get("uuid"))
        if not message_id:
            message_id = f"{ordinal}-{short_hash(conversation_id, ordinal, text)}"
        if text:
            yield Message(message_id, role, text, at)
        for index, attachment in enumerate(list_of(raw.get("attachments"))):
            pasted = clean(mapping_of(attachment).get("extracted_content")).strip()
            if pasted:
                yield Message(f"{message_id}:attachment:{index}", "quote", pasted, at)

    def _text(self, raw: dict[str, Any]) -> str:
        """Join the text blocks.

        The message's own `text` repeats them with the thinking mixed in: it counts only where there
        are no blocks.
        """
        blocks = [block for block in list_of(raw.get("content")) if isinstance(block, dict)]
        if not blocks:
            content = raw.get("content")
            return clean(content).strip() or clean(raw.get("text")).strip()
        texts = []
        for block in blocks:
            kind = clean(block.get("type"))
            if kind in _NOT_SPOKEN:
                continue
            if kind != "text":
                self._report.unknown(kind)
            texts.append(clean(block.get("text")).strip())
        return "\n\n".join(text for text in texts if text)


def _moment(raw: dict[str, Any]) -> float:
    at = time_of(raw.get("created_at"))
    return at.timestamp() if at is not None else 0.0
