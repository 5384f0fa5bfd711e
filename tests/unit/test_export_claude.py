"""Claude's rules: blocks, attachments, branches, and the memory beside the conversations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from daemon.errors import BadExport
from tests.support.export_samples import claude, dump, read, zipped

if TYPE_CHECKING:
    from pathlib import Path


def message(key: str, sender: str, text: str, **fields: Any) -> dict[str, Any]:
    return {
        "uuid": key,
        "sender": sender,
        "text": text,
        "content": [{"type": "text", "text": text}],
        "created_at": "2025-01-01T00:00:00Z",
        **fields,
    }


def texts(folder: Path, *messages: Any) -> list[tuple[str, str]]:
    conversation = claude("c", chat_messages=list(messages))
    (found,), _ = read(folder, dump([conversation]))
    return [(m.role, m.text) for m in found.messages]


def test_thinking_and_tools_are_left_out_although_the_top_level_text_repeats_them(
    tmp_path: Path,
) -> None:
    content = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "First."},
        {"type": "tool_use", "name": "x"},
        None,
        {"type": "text", "text": "Second."},
    ]
    answer = message("b", "assistant", "hm First. Second.", content=content)
    assert texts(tmp_path, message("a", "human", "Hi"), answer) == [
        ("user", "Hi"),
        ("assistant", "First.\n\nSecond."),
    ]


def test_what_the_app_injects_into_a_message_is_not_the_persons(tmp_path: Path) -> None:
    note = {"type": "injected_prompt_block", "prompt": "It is Friday.", "text": "It is Friday."}
    exported = message("a", "human", "Hi", content=[note, {"type": "text", "text": "Hi"}])
    (found,), report = read(tmp_path, dump([claude("c", chat_messages=[exported])]))
    assert [m.text for m in found.messages] == ["Hi"]
    assert report.unknown_content_types == {}


def test_a_message_of_tool_blocks_only_does_not_fall_back_to_its_text(tmp_path: Path) -> None:
    answer = message("b", "assistant", "thinking aloud", content=[{"type": "tool_use"}])
    assert texts(tmp_path, message("a", "human", "Hi"), answer) == [("user", "Hi")]


def test_pasted_text_follows_as_a_quote(tmp_path: Path) -> None:
    attachments = [{"file_name": "paste.txt", "extracted_content": "Long paste"}, None, {}]
    asked = message("a", "human", "See this", attachments=attachments)
    conversation = claude("c", chat_messages=[asked])
    (found,), _ = read(tmp_path, dump([conversation]))
    assert [(m.id, m.role, m.text) for m in found.messages] == [
        ("a", "user", "See this"),
        ("a:attachment:0", "quote", "Long paste"),
    ]


def test_the_latest_branch_is_read(tmp_path: Path) -> None:
    root = "00000000-0000-4000-8000-000000000000"
    assert texts(
        tmp_path,
        message("a", "human", "Question", parent_message_uuid=root),
        message("b", "assistant", "Old answer", parent_message_uuid="a"),
        message("d", "human", "Old follow-up", parent_message_uuid="b"),
        message(
            "e",
            "assistant",
            "New answer",
            parent_message_uuid="a",
            created_at="2025-01-02T00:00:00Z",
        ),
    ) == [("user", "Question"), ("assistant", "New answer")]


def test_messages_that_name_no_parent_follow_the_one_before(tmp_path: Path) -> None:
    found = texts(
        tmp_path,
        message("a", "human", "1"),
        message("b", "assistant", "2"),
        message("d", "human", "3", parent_message_uuid="b"),
        message("e", "assistant", "4"),
    )
    assert [text for _, text in found] == ["1", "2", "3", "4"]


def test_a_message_that_is_lost_takes_no_other_with_it(tmp_path: Path) -> None:
    """All before it was left out in silence, and the half would have replaced a whole one."""
    root = "00000000-0000-4000-8000-000000000000"
    exported: list[Any] = [
        message("a", "human", "old", parent_message_uuid=root),
        message("b", "assistant", "old answer", parent_message_uuid="a"),
        message("c", "human", "edited", parent_message_uuid=root),
        message("d", "assistant", "answer", parent_message_uuid="c"),
        message("e", "human", "next", parent_message_uuid="d"),
        message("f", "assistant", "last", parent_message_uuid="e"),
    ]
    for nameless in (None, {**exported[4], "uuid": None, "text": "", "content": []}):
        assert [text for _, text in texts(tmp_path, *exported[:4], nameless, exported[5])] == [
            "edited",
            "answer",
            "last",
        ]


def test_a_loop_of_parents_ends(tmp_path: Path) -> None:
    conversation = claude("c", "1", "2")
    conversation["chat_messages"][0]["parent_message_uuid"] = "c-1"
    conversation["chat_messages"][1]["parent_message_uuid"] = "c-0"
    (found,), report = read(tmp_path, dump([conversation]))
    assert len(found.messages) == 2
    assert report.damaged == 1


@pytest.mark.parametrize("value", [None, [], {}, "", 0, "text", [None], True], ids=repr)
def test_nulls_anywhere_never_stop_the_rest(tmp_path: Path, value: Any) -> None:
    broken = [claude("x", **{k: value}) for k in ("name", "created_at", "chat_messages", "uuid")]
    for key in ("uuid", "text", "content", "sender", "created_at", "attachments", "files"):
        conversation = claude(f"y-{key}")
        conversation["chat_messages"][1][key] = value
        conversation["chat_messages"].append(value)
        broken.append(conversation)
    found, report = read(tmp_path, dump([*broken, claude("last", "intact")]))
    assert found[-1].messages[0].text == "intact"
    assert report.source == "claude"
    assert report.damaged == 0


def test_memories_are_read_and_projects_reported(tmp_path: Path) -> None:
    memories = [
        {
            "conversations_memory": "**Work** Ann bakes.",
            "project_memories": {"p": "The oven project.", "q": None},
            "account_uuid": "u",
        }
    ]
    content = zipped(
        {
            "data/memories.json": dump(memories),
            "data/projects.json": dump([{"uuid": "p", "name": "Oven", "docs": []}]),
            "data/users.json": b"[]",
            "data/conversations.json": dump([claude("c")]),
        }
    )
    found, report = read(tmp_path, content)
    assert [(c.id.partition(":")[0], c.messages[0].role, c.messages[0].text) for c in found] == [
        ("c", "user", "Hello from me"),
        ("memory", "memory", "**Work** Ann bakes."),
        ("memory", "memory", "The oven project."),
    ]
    assert (report.conversations, report.context_entries) == (1, 2)
    assert report.ignored == {"project documents": 1}
    assert report.whole


def test_other_keys_may_stand_before_the_wrapped_conversations(tmp_path: Path) -> None:
    wrapped = {
        "version": 1,
        "user": {"name": 'A ] " }', "tags": [["x"]]},
        "conversations": [claude("c"), claude("d")],
        "after": {"y": 1},
    }
    found, report = read(tmp_path, dump(wrapped, indent=1))
    assert [c.id for c in found] == ["c", "d"]
    assert report.whole


def test_a_conversation_id_beside_its_messages_does_not_make_it_another_apps(
    tmp_path: Path,
) -> None:
    """Taken for ChatGPT's, each was counted as one without a visible message."""
    both = [claude(own_id, conversation_id=own_id) for own_id in ("c", "d")]
    for content in (both, both[0]):
        found, report = read(tmp_path, dump(content))
        assert report.source == "claude"
        assert [len(c.messages) for c in found] == [2] * report.conversations
        assert report.empty == 0


@pytest.mark.parametrize("names", [{"conversation_id": "x"}, {"uuid": "x", "name": "About x"}])
def test_words_that_stand_where_no_reader_looks_are_told_as_damage(
    tmp_path: Path, names: dict[str, str]
) -> None:
    other = {**names, "messages": [{"role": "user", "content": "Hello"}]}
    _, report = read(tmp_path, dump([claude("c"), other]))
    assert (report.empty, report.conversations, report.whole) == (0, 1, False)
    assert report.damages == [
        f"conversations.json, item 2: no conversation (its keys: {', '.join(other)})"
    ]
    with pytest.raises(BadExport, match="JSON, but no chat export"):
        read(tmp_path, dump([other]))


def test_memory_in_files_is_read(tmp_path: Path) -> None:
    files = [
        {"path": "/me.md", "content": "Ann bakes.", "updated_at": "2026-03-01T09:00:00Z"},
        None,
    ]
    content = zipped({"memories/u.json": dump({"account_uuid": "u", "memory_files": files})})
    (found,), report = read(tmp_path, content)
    assert (found.title, found.messages[0].role) == ("Claude's memory: /me.md", "memory")
    assert found.messages[0].text == "Ann bakes."
    assert found.created_at == datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert (report.context_entries, report.tells_of_conversations) == (1, False)


def test_an_export_in_several_files_says_which_to_upload(tmp_path: Path) -> None:
    listed = {"data_files": [{"category": "conversations", "filename": "conversations-000.zip"}]}
    inner = zipped({"conversations.json": dump([claude("c")])})
    packed = zipped({"memories-000.zip": b"", "conversations-000.zip": inner})
    for content, says in (
        (dump(listed), "only lists the files of an export; download"),
        (packed, "but no conversations; upload conversations-000.zip out of it"),
    ):
        with pytest.raises(BadExport) as raised:
            read(tmp_path, content)
        assert says in str(raised.value)
    _, report = read(
        tmp_path,
        zipped(
            {
                "conversations.json": dump([claude("c")]),
                "design_chats/d.json": b"{}",
                "reflections/r.json": b'{"reflections": []}',
            }
        ),
    )
    assert report.ignored == {"design chats": 1, "reflections": 1}
