"""ChatGPT's shape of a conversation, from 2023 to the sharded exports of 2026.

Owns the way from one exported object to visible messages along the active path, and the two things
exports repeat in every conversation: custom instructions and saved memories, which come out once
per distinct text. Promises to drop nothing without counting it and to fail on no shape at all;
what each content type becomes is the table in docs/formats.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from daemon.export.chatgpt_text import (
    any_text,
    memories,
    parts_text,
    quoted_text,
    strip_citations,
    unwrapped,
    without_notes,
)
from daemon.export.conversation import Conversation, Message
from daemon.export.spool import Spool, SpooledMessages, collected
from daemon.export.values import (
    DecodeError,
    clean,
    decode_tolerantly,
    fold,
    identifier,
    list_of,
    mapping_of,
    past_time_of,
    short_hash,
    time_of,
    title_of,
)
from daemon.export.values import decode as decode_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from daemon.export.conversation import ReadReport, Role
    from daemon.export.members import Member
    from daemon.export.spool import Collected, Room

# Only what is read is typed, and each leaf is Any: msgspec then skips the bulk of a node's metadata
# without building it, and a wrong type in a leaf is no error.


class _Author(msgspec.Struct):
    role: Any = None
    name: Any = None


class _Metadata(msgspec.Struct):
    is_visually_hidden_from_conversation: Any = None
    is_user_system_message: Any = None
    user_context_message_data: Any = None


class _Message(msgspec.Struct):
    id: Any = None
    author: _Author | None = None
    create_time: Any = None
    content: Any = None
    weight: Any = None
    recipient: Any = None
    metadata: _Metadata | None = None


class _Node(msgspec.Struct):
    parent: Any = None
    children: Any = None
    message: _Message | None = None


class _Export(msgspec.Struct):
    id: Any = None
    conversation_id: Any = None
    title: Any = None
    create_time: Any = None
    update_time: Any = None
    mapping: dict[str, _Node | None] | None = None
    current_node: Any = None
    is_do_not_remember: Any = None
    is_temporary_chat: Any = None
    memory_scope: Any = None


_decoder = msgspec.json.Decoder(_Export)
_node_decoder = msgspec.json.Decoder(_Node)

_TOOL_TRAFFIC = frozenset(
    {
        "code",
        "execution_output",
        "tether_browsing_display",
        "tether_browsing_code",
        "thoughts",
        "reasoning_recap",
        "system_error",
    }
)
_AUTHORS: dict[str, Role | None] = {
    "user": "user",
    "assistant": "assistant",
    "system": None,
    "tool": None,
}
_PLAIN = frozenset({"text", "multimodal_text"})
_THIRD_PARTY = frozenset({"tether_quote", "sonic_webpage", "app_pairing_content"})
_KNOWN = _PLAIN | _THIRD_PARTY | _TOOL_TRAFFIC
_CONTEXT = frozenset({"user_editable_context", "model_editable_context"})

# Scopes seen in exports are global_enabled and project-only ones: in both the app itself remembers.
# Only a scope that says in so many words that memory is off counts as "do not remember".
_MEMORY_OFF = re.compile(r"(?:^|_)(?:off|none|disabled|no_memory|do_not_remember|forget)(?:_|$)")

_BIO_RECEIPT = "model set context updated."


def decode(raw: memoryview, *, strict: bool = False) -> _Export:
    """Read one exported object from its JSON, as values.decode does; raises DecodeError."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = decode_tolerantly(raw, strict=strict)
    if not isinstance(value, dict):
        raise DecodeError("not an object")
    return from_plain(value)


def from_plain(value: dict[str, Any]) -> _Export:
    """Do the same from plain objects of any shape; what has the wrong type is left out."""
    export = _Export(**{key: value.get(key) for key in _Export.__struct_fields__})
    nodes = mapping_of(value.get("mapping"))
    export.mapping = {str(key): _node(node) for key, node in nodes.items()}
    return export


def _decoded_node(raw: bytes) -> _Node | None:
    """Read one node of a mapping from its JSON; raises DecodeError."""
    try:
        return _node_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _node(decode_tolerantly(raw))


def _node(value: object) -> _Node | None:
    if not isinstance(value, dict):
        return None
    node = _Node(parent=value.get("parent"), children=value.get("children"))
    raw = value.get("message")
    if isinstance(raw, dict):
        message = _Message(**{key: raw.get(key) for key in _Message.__struct_fields__})
        author, metadata = mapping_of(raw.get("author")), mapping_of(raw.get("metadata"))
        message.author = _Author(role=author.get("role"), name=author.get("name"))
        message.metadata = _Metadata(
            **{key: metadata.get(key) for key in _Metadata.__struct_fields__}
        )
        node.message = message
    return node


def is_chatgpt(value: dict[str, Any]) -> bool:
    """Whether a decoded object looks like a conversation of this shape."""
    if "mapping" in value or "current_node" in value:
        return True
    if "chat_messages" in value or value.get("messages"):
        return False  # Claude's, or a shape nobody here reads: its words are not to pass for none
    return "conversation_id" in value or ("create_time" in value and "title" in value)


class ChatGPTReader:
    """Turns exported objects into conversations; remembers which shared texts it has yielded."""

    def __init__(self, report: ReadReport) -> None:
        self._report = report
        self._seen_context: set[str] = set()

    def read_object(
        self, raw: memoryview, place: str, *, strict: bool = False
    ) -> Iterator[Conversation]:
        """Yield what one exported object holds; raises DecodeError."""
        messages: list[Message] = []
        yield from self._read(decode(raw, strict=strict), place, messages, lambda message: message)

    def read_members(
        self, members: Iterable[Member], place: str, room: Room
    ) -> Iterator[Conversation]:
        """Do the same for an object too large to be held; raises DecodeError.

        Its nodes wait on disk until the path is known; of each only its place in the tree is held.
        """
        export = _Export(mapping={})
        spool = Spool(room)
        for within, key, raw in members:
            if within == "mapping":
                node = _decoded_node(raw)
                if node is not None and node.message is not None:
                    # Its own text waits on disk, under this number.
                    at = node.message.create_time
                    node.message = _Message(content=spool.append(raw), create_time=at)
                export.mapping[key] = node  # type: ignore[index]
            elif raw and key in _Export.__struct_fields__:
                setattr(export, key, decode_plain(raw))

        def load(stub: _Message) -> _Message:
            node = _decoded_node(spool[stub.content])
            return (node and node.message) or stub

        yield from self._read(export, place, SpooledMessages(room), load)
        spool.close()

    def _read(
        self,
        export: _Export,
        place: str,
        messages: Collected,
        load: Callable[[_Message], _Message],
    ) -> Iterator[Conversation]:
        """Yield what the object holds: shared texts met for the first time, then the conversation.

        Of one that the person asked not to be remembered only that: it comes without messages.
        """
        created, updated = time_of(export.create_time), past_time_of(export.update_time)
        self._report.reaches(updated)
        own_id = identifier(export.id) or identifier(export.conversation_id)
        if self._forgotten(export):
            self._report.forgotten += 1
            if own_id:
                yield Conversation("chatgpt", own_id, "", (), created, updated, place)
            return
        context: list[Message] = []
        for key, raw in self._path(export, place):
            for message in self._messages(key, load(raw)):
                (context if message.role == "instructions" or not message.id else messages).append(
                    message
                )
        for message in context:
            entry = self._context_entry(message, created, place)
            if entry is not None:
                yield entry
        if not messages:
            self._report.empty += not context
            return
        if not own_id:
            own_id = short_hash("chatgpt", export.create_time, messages[0].id, messages[0].text)
        yield Conversation(
            source="chatgpt",
            id=own_id,
            title=title_of(export.title),
            messages=collected(messages),
            created_at=created,
            updated_at=updated,
            place=place,
        )

    @staticmethod
    def _forgotten(export: _Export) -> bool:
        if any(_is_true(flag) for flag in (export.is_do_not_remember, export.is_temporary_chat)):
            return True
        scope = export.memory_scope
        return isinstance(scope, str) and _MEMORY_OFF.search(scope.casefold()) is not None

    # --- the active path

    def _path(self, export: _Export, place: str) -> list[tuple[str, _Message]]:
        """List the messages from the root to the current node, in reading order."""
        # A node that is null, or gone but for its parent's naming it, still links two others.
        nodes = export.mapping or {}
        real = {key: node for key, node in nodes.items() if node is not None}
        parents: dict[str, str] = {}
        for key, node in real.items():
            for child in list_of(node.children):
                if isinstance(child, str) and child != key:
                    parents.setdefault(child, key)
        for key, node in real.items():
            if isinstance(node.parent, str) and (node.parent in nodes or node.parent in parents):
                parents[key] = node.parent
        if parents.keys().isdisjoint(nodes):
            return self._unlinked(real)
        current = export.current_node
        if isinstance(current, str) and current in nodes:
            path = self._climb(current, real, parents, place)
            if path:
                return path
        inner = {parent for key, parent in parents.items() if key in real}
        leaves = [key for key in real if key not in inner] or list(real)
        leaf = max(leaves, key=lambda key: _moment(real[key]))
        return self._climb(leaf, real, parents, place)

    def _climb(
        self, leaf: str, nodes: dict[str, _Node], parents: dict[str, str], place: str
    ) -> list[tuple[str, _Message]]:
        path: list[tuple[str, _Message]] = []
        visited: set[str] = set()
        key: str | None = leaf
        while key is not None:
            if key in visited:
                self._report.damage(place, "its messages form a loop; read once around")
                break
            visited.add(key)
            node = nodes.get(key)
            if node is not None and node.message is not None:
                path.append((key, node.message))
            key = parents.get(key)
        path.reverse()
        return path

    @staticmethod
    def _unlinked(nodes: dict[str, _Node]) -> list[tuple[str, _Message]]:
        """Order nodes written without links: by time, and as in the file where equal."""
        path = [(key, node.message) for key, node in nodes.items() if node.message is not None]
        latest = 0.0
        order = []
        for key, message in path:
            at = time_of(message.create_time)
            latest = at.timestamp() if at is not None else latest
            order.append((latest, key, message))
        order.sort(key=lambda entry: entry[0])
        return [(key, message) for _, key, message in order]

    # --- one message

    def _messages(self, key: str, raw: _Message) -> Iterator[Message]:
        """Yield what one exported message says; entries of the shared context carry no id."""
        author = raw.author or _Author()
        role, name, recipient = clean(author.role), clean(author.name), raw.recipient
        recipient = recipient if isinstance(recipient, str) else None
        metadata = raw.metadata or _Metadata()
        content = raw.content
        if isinstance(content, str):
            content = {"content_type": "text", "parts": [content]}
        content = mapping_of(content)
        kind = content.get("content_type")
        kind = kind if isinstance(kind, str) else ("text" if "parts" in content else "")
        if kind in _CONTEXT or (role == "system" and metadata.is_user_system_message):
            yield from self._context(kind, content, metadata)
            return
        if recipient == "bio" or name == "bio":
            text = any_text(content)
            message_id = _message_id(raw, key)
            if text and fold(text) != _BIO_RECEIPT:
                at = time_of(raw.create_time)
                yield Message(id=message_id, role="memory", text=text, at=at)
            return
        if kind not in _KNOWN and content:
            self._report.unknown(clean(kind))
        if role not in _AUTHORS:
            # Nobody's words as far as the file says: kept to be read, never to rest a fact on.
            self._report.unknown(f"author {role or 'missing'}")
        if (
            metadata.is_visually_hidden_from_conversation is True
            or raw.weight == 0
            or role in {"system", "tool"}
            or (role == "assistant" and recipient not in {None, "all"})
            or kind in _TOOL_TRAFFIC
        ):
            return
        speaker: Role = _AUTHORS.get(role) or "quote"
        if kind in _PLAIN:
            text = parts_text(content)
        elif kind in _THIRD_PARTY:
            speaker = "quote"
            text = quoted_text(content)
        else:
            text = any_text(content)
        text = strip_citations(text).strip()
        if text:
            message_id = _message_id(raw, key)
            yield Message(id=message_id, role=speaker, text=text, at=time_of(raw.create_time))

    def _context(
        self, kind: str, content: dict[str, Any], metadata: _Metadata
    ) -> Iterator[Message]:
        """Yield custom instructions as one text, saved memories one by one; none has an id."""
        if kind == "model_editable_context":
            for text, at in memories(clean(content.get("model_set_context"))):
                yield Message(id="", role="memory", text=text, at=at)
            return
        typed = mapping_of(metadata.user_context_message_data)
        texts = [clean(value).strip() for value in typed.values()]
        if not any(texts):
            written = (clean(content.get(key)) for key in ("user_profile", "user_instructions"))
            texts = [unwrapped(text) for text in written]
            if (own := [without_notes(text) for text in texts]) != texts:
                self._report.ignore("notes of the app on date and place")
                texts = own
        if not any(texts):
            texts = [parts_text(content).strip()]
        text = "\n\n".join(text for text in texts if text)
        if text:
            yield Message(id="", role="instructions", text=text)

    def _context_entry(
        self, message: Message, met_at: datetime | None, place: str
    ) -> Conversation | None:
        entry_id = f"{message.role}:{short_hash(fold(message.text))}"
        if entry_id in self._seen_context:
            return None
        self._seen_context.add(entry_id)
        title = "Custom instructions" if message.role == "instructions" else "Saved memory"
        return Conversation(
            source="chatgpt",
            id=entry_id,
            title=title,
            messages=(Message(entry_id, message.role, message.text, message.at),),
            created_at=message.at or met_at,
            place=place,
        )


def _is_true(flag: object) -> bool:
    """Whether a flag is set, however it was written down."""
    return flag is True or flag == 1 or (isinstance(flag, str) and flag.casefold() == "true")


def _message_id(raw: _Message, key: str) -> str:
    """Name a message by its own id, else by its node's key, which may be any text at all."""
    return identifier(raw.id) or identifier(key) or short_hash(key)


def _moment(node: _Node) -> float:
    at = time_of(node.message.create_time) if node.message is not None else None
    return at.timestamp() if at is not None else 0.0
