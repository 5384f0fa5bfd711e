"""Every public sample export gives exactly what a person counts in it, in whatever container."""

from __future__ import annotations

import pickle
import shutil
from typing import TYPE_CHECKING

import pytest

from daemon.errors import BadExport
from daemon.export.reader import ExportReader
from tests.support.export_samples import FIXTURES, gzipped, zipped

if TYPE_CHECKING:
    from pathlib import Path

# file → source, then (id, title, roles) of each conversation, counted by hand.
U, A = "user", "assistant"
COUNTED = {
    "chatgpt/librechat-chatgpt-export.json": (
        "chatgpt",
        [
            ("d6523d1e-7ec3-474f-a363-0e9dffdb3d93", "Conversation 1. Web Search", [U, A] * 3),
            ("7c5ab593-dbab-43bd-862d-2c3c1eeebf6a", "Conversation 2", [U, A] * 2),
        ],
    ),
    "chatgpt/librechat-chatgpt-tree.json": (
        "chatgpt",
        [("d5dc5307-6807-41a0-8b04-4acee626eeb7", "Assist user with summary", [U, A] * 3)],
    ),
    "chatgpt/mitkury-example-conversation.json": (
        "chatgpt",
        [("conv-123", "Sample conversation with branch", [U, A] * 2)],
    ),
    "chatgpt/ai-chat-md-export-conversations.json": (
        "chatgpt",
        [(None, "Math Question", [U, A] * 2), (None, "Code Help", [U, A] * 2)],
    ),
    "chatgpt/bot-knows-chatgpt_export.json": (
        "chatgpt",
        [
            ("abc123-def456", "Toto Cutugno Insieme 1992", [U, A] * 2),
            ("xyz789-uvw012", "Moja zubarka prevod", [U, A]),
        ],
    ),
    "claude/ai-chat-md-export-conversations.json": (
        "claude",
        [
            ("conv-weather-123", "Weather Chat", [U, A] * 2),
            ("conv-recipe-456", "Recipe Help", [U, A] * 2),
        ],
    ),
    "claude/bot-knows-claude_export.json": (
        "claude",
        [("conv-claude-001", "Database Design Discussion", [U, A] * 2)],
    ),
    "gemini/knowledgemaxxing-MyActivity.json": (
        "gemini",
        [(None, "what should I read to understand progress studies", [U])],
    ),
}


@pytest.mark.parametrize("container", ["plain", "gzip", "zip"])
@pytest.mark.parametrize("file", COUNTED)
def test_sample_gives_what_a_person_counts_in_it(file: str, container: str, tmp_path: Path) -> None:
    source, expected = COUNTED[file]
    content = (FIXTURES / file).read_bytes()
    if container == "gzip":
        content = gzipped(content)
    elif container == "zip":
        member = "Takeout/MyActivity.json" if source == "gemini" else "a/b/conversations.json"
        content = zipped({member: content, "user.json": b"{}", "image.png": b"\x89PNG"})
    path = tmp_path / "upload.bin"
    path.write_bytes(content)
    reader = ExportReader(path)
    found = list(reader)

    assert reader.report.source == source
    assert [(c.title, [m.role for m in c.messages]) for c in found] == [e[1:] for e in expected]
    for conversation, (own_id, _, _) in zip(found, expected, strict=True):
        assert own_id is None or conversation.id == own_id
        assert conversation.source == source
        assert conversation.created_at is not None
        assert conversation.created_at.tzinfo is not None
        assert all(m.text and m.id and m.at is not None for m in conversation.messages)
        assert pickle.loads(pickle.dumps(conversation)) == conversation
    assert reader.report.conversations == len(expected)
    assert reader.report.messages == sum(len(e[2]) for e in expected)
    assert (reader.report.damaged, reader.report.whole) == (0, True)
    assert reader.report.bytes_read == reader.report.bytes_total > 0


def test_derived_ids_do_not_depend_on_file_or_container(tmp_path: Path) -> None:
    original = FIXTURES / "chatgpt/ai-chat-md-export-conversations.json"
    other = tmp_path / "x.zip"
    other.write_bytes(zipped({"conversations-003.json": original.read_bytes()}))
    assert [c.id for c in ExportReader(original)] == [c.id for c in ExportReader(other)]


def test_active_branch_is_read_and_the_edited_away_one_is_not() -> None:
    (conversation,) = ExportReader(FIXTURES / "chatgpt/librechat-chatgpt-tree.json")
    texts = [m.text for m in conversation.messages]
    assert texts[2] == "hi again"
    assert texts[4] == "tell me a joke"
    assert not any("story" in text for text in texts)
    (conversation,) = ExportReader(FIXTURES / "chatgpt/mitkury-example-conversation.json")
    assert not any("Python instead" in m.text for m in conversation.messages)


def test_browsing_leaves_neither_traffic_nor_citation_marks() -> None:
    first, _ = ExportReader(FIXTURES / "chatgpt/librechat-chatgpt-export.json")
    text = "\n".join(m.text for m in first.messages)
    assert "†" not in text
    assert "mclick" not in text
    assert "ultimatespecs" not in text
    assert text.startswith("What is the fuel consumption of vw  transporter")


def test_takeout_without_gemini_says_what_it_held() -> None:
    with pytest.raises(BadExport, match=r"Chrome, Search activity but no Gemini prompts"):
        list(ExportReader(FIXTURES / "gemini/knowledgemaxxing-MyActivity.html"))


def test_message_names_the_storage_path_and_not_the_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "spool-123"
    shutil.copy(FIXTURES / "SOURCES.md", path)
    with pytest.raises(BadExport) as raised:
        list(ExportReader(path, name="uploads/ann/export.zip"))
    assert str(raised.value).startswith("uploads/ann/export.zip: this is a text file without JSON")
    assert "spool-123" not in str(raised.value)
