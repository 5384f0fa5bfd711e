"""ChatGPT's rules: the active path, what each content type becomes, what is hidden, what is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from daemon.errors import BadExport
from daemon.export.reader import ExportReader
from tests.support.export_samples import START, chatgpt, dump, node, read, talk, zipped

if TYPE_CHECKING:
    from pathlib import Path


def spoken(folder: Path, *conversations: dict[str, Any]) -> list[tuple[str, str]]:
    found, _ = read(folder, dump(list(conversations)))
    return [(m.role, m.text) for c in found for m in c.messages]


def test_without_current_node_the_latest_leaf_decides(tmp_path: Path) -> None:
    conversation = chatgpt(
        "c",
        node("a", "user", "Question", at=START),
        node("old", "assistant", "First answer", parent="a", at=START + 1),
        node("new", "assistant", "Second answer", parent="a", at=START + 9),
        current_node=None,
    )
    assert spoken(tmp_path, conversation) == [("user", "Question"), ("assistant", "Second answer")]


def test_a_current_node_that_is_not_there_is_as_good_as_none(tmp_path: Path) -> None:
    assert len(spoken(tmp_path, talk("c", current_node="gone"))) == 2


@pytest.mark.parametrize("how", ["null", "gone"])
@pytest.mark.parametrize("current", ["c-5", None])
def test_a_node_that_is_lost_takes_no_other_with_it(
    tmp_path: Path, how: str, current: str | None
) -> None:
    """The half before it was left out in silence, and would have replaced a whole one."""
    conversation = talk("c", *(f"t{n}" for n in range(6)), current_node=current)
    for lost, kept in (("c-2", "t0 t1 t3 t4 t5"), ("c-5", "t0 t1 t2 t3 t4")):
        mapping = dict(conversation["mapping"])
        mapping.pop(lost)
        if how == "null":
            mapping[lost] = None
        (found,), _ = read(tmp_path, dump([{**conversation, "mapping": mapping}]))
        assert [m.text for m in found.messages] == kept.split()


def test_a_loop_is_read_once_around_and_told(tmp_path: Path) -> None:
    conversation = talk("c", "one", "two", "three")
    conversation["mapping"]["c-0"]["parent"] = "c-2"
    found, report = read(tmp_path, dump([conversation, talk("d")]))
    assert [len(c.messages) for c in found] == [3, 2]
    assert report.damages == [
        "conversations.json, item 1: its messages form a loop; read once around"
    ]
    assert not report.whole


def test_a_hundred_thousand_nodes_in_one_chain(tmp_path: Path) -> None:
    conversation = talk("c", *(f"message {i}" for i in range(100_000)))
    found, report = read(tmp_path, dump([conversation]))
    assert [len(c.messages) for c in found] == [100_000]
    assert report.whole


@pytest.mark.parametrize(
    "hidden",
    [
        node("x", "system", "You are a bot"),
        node("x", "tool", "result", name="browser"),
        node("x", "assistant", "search()", recipient="browser"),
        node("x", "user", "unseen", weight=0.0),
        node("x", "user", "unseen", metadata={"is_visually_hidden_from_conversation": True}),
        *(
            node("x", "assistant", "-", content={"content_type": kind, "text": "traffic"})
            for kind in (
                "code",
                "execution_output",
                "tether_browsing_display",
                "tether_browsing_code",
                "thoughts",
                "reasoning_recap",
                "system_error",
            )
        ),
        node("x", "tool", "-", content={"content_type": "tether_quote", "text": "a page"}),
        node("x", "user", "   "),
    ],
    ids=lambda n: f"{n['message']['author']['role']}-{n['message']['content']['content_type']}",
)
def test_what_the_app_hides_is_not_read(tmp_path: Path, hidden: dict[str, Any]) -> None:
    conversation = chatgpt("c", node("a", "user", "Seen"), hidden, node("b", "assistant", "Also"))
    assert spoken(tmp_path, conversation) == [("user", "Seen"), ("assistant", "Also")]


def test_pictures_and_speech_in_one_message(tmp_path: Path) -> None:
    parts = [
        "Look at this",
        {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"},
        {"content_type": "audio_transcription", "text": "and listen", "direction": "in"},
        {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://y"},
        None,
        {"content_type": "something_new"},
    ]
    content = {"content_type": "multimodal_text", "parts": parts}
    conversation = chatgpt("c", node("a", "user", "", content=content))
    expected = "Look at this\n[image]\nand listen\n[attachment]"
    assert spoken(tmp_path, conversation) == [("user", expected)]


def test_quoted_pages_are_nobodys_words(tmp_path: Path) -> None:
    content = {"content_type": "sonic_webpage", "title": "T", "url": "https://x", "text": "Body"}
    conversation = chatgpt(
        "c", node("a", "user", "Hi"), node("b", "assistant", "", content=content)
    )
    assert spoken(tmp_path, conversation)[1] == ("quote", "T\nhttps://x\nBody")


def test_windows_the_app_looked_into_are_nobodys_words(tmp_path: Path) -> None:
    content = {
        "content_type": "app_pairing_content",
        "workspaces": [{"app_name": "Terminal", "title": "zsh"}],
        "context_parts": [{"workspace_id": "w", "text": "$ make test"}, None, {"text": None}],
        "custom_instructions": None,
    }
    conversation = chatgpt(
        "c", node("a", "user", "", content=content), node("b", "user", "What failed?")
    )
    assert spoken(tmp_path, conversation) == [("quote", "$ make test"), ("user", "What failed?")]


def test_citation_marks_are_stripped(tmp_path: Path) -> None:
    text = "Known\ue200cite\ue202turn0search1\ue201 fact【12†source】 and\ue203 more【3†L1-L9】."
    conversation = chatgpt("c", node("a", "user", "Hi"), node("b", "assistant", text))
    assert spoken(tmp_path, conversation)[1] == ("assistant", "Known fact and more.")


def test_unknown_content_types_are_counted_and_their_text_is_kept(tmp_path: Path) -> None:
    conversation = chatgpt(
        "c",
        node("a", "user", "", content={"content_type": "hologram", "text": "my words"}),
        node("b", "assistant", "", content={"content_type": "hologram", "result": "its words"}),
        node("d", None, "whose words"),
    )
    found, report = read(tmp_path, dump([conversation]))
    assert [(m.role, m.text) for m in found[0].messages] == [
        ("user", "my words"),
        ("assistant", "its words"),
        ("quote", "whose words"),
    ]
    assert report.unknown_content_types == {"hologram": 2, "author missing": 1}


def test_custom_instructions_come_once_per_distinct_text(tmp_path: Path) -> None:
    def with_instructions(own_id: str, profile: str) -> dict[str, Any]:
        content = {
            "content_type": "user_editable_context",
            "user_profile": f"The user provided this about themselves:\n```{profile}```",
            "user_instructions": "They want:\n```Be brief.```",
        }
        hidden = {"is_visually_hidden_from_conversation": True, "is_user_system_message": True}
        context = node(
            f"{own_id}-i", "user", "", content=content, at=None, weight=0.0, metadata=hidden
        )
        return chatgpt(own_id, context, node(f"{own_id}-a", "user", "Hi"))

    found, report = read(
        tmp_path,
        dump(
            [
                with_instructions("c", "I bake."),
                with_instructions("d", "I  BAKE."),
                with_instructions("e", "I ski."),
            ]
        ),
    )
    context = [c for c in found if c.id.startswith("instructions:")]
    assert [c.messages[0].text for c in context] == ["I bake.\n\nBe brief.", "I ski.\n\nBe brief."]
    assert all(m.role == "instructions" and m.at is None for c in context for m in c.messages)
    assert context[0].created_at == datetime.fromtimestamp(START + 0.5, UTC)
    assert len(context[0].id) == len("instructions:") + 16
    assert (report.conversations, report.context_entries, report.messages) == (3, 2, 3)


def test_what_the_app_notes_of_the_day_is_nobodys_instruction(tmp_path: Path) -> None:
    """Since 2025 it writes that beside them: each day would bring new custom instructions."""

    def on(own_id: str, day: str, instructions: str) -> dict[str, Any]:
        note = (
            f"Very important: The user's timezone is Europe/Oslo. The current date is {day}. Any "
            "dates before this are in the past.\nThe user's location is Oslo, Norway.\n\n"
        )
        content = {
            "content_type": "user_editable_context",
            "user_profile": note,
            "user_instructions": instructions,
        }
        metadata = {"is_user_system_message": True, "user_context_message_data": {}}
        context = node(f"{own_id}-i", "user", "", content=content, metadata=metadata)
        return chatgpt(own_id, context, node(f"{own_id}-a", "user", "Hi"))

    days = [
        on("c", "6th August, 2025", "Name your sources."),
        on("d", "7th August, 2025", "Name your sources."),
        on("e", "8th August, 2025", ""),
    ]
    found, report = read(tmp_path, dump(days))
    context = [m.text for c in found for m in c.messages if m.role == "instructions"]
    assert context == ["Name your sources."]
    assert report.ignored == {"notes of the app on date and place": 3}
    assert (report.conversations, report.context_entries, report.messages) == (3, 1, 3)


def test_older_custom_instructions_stand_in_the_metadata(tmp_path: Path) -> None:
    metadata = {
        "is_user_system_message": True,
        "user_context_message_data": {
            "about_user_message": "I teach.",
            "about_model_message": "Short.",
        },
    }
    context = node("s", "system", "", weight=0.0, metadata=metadata)
    said = spoken(tmp_path, chatgpt("c", context, node("a", "user", "Hi")))
    assert said == [("instructions", "I teach.\n\nShort."), ("user", "Hi")]


def test_saved_memories_come_entry_by_entry_once(tmp_path: Path) -> None:
    first = "# Model Set Context\n\n1. [2024-12-10]. Prefers tea\n  over coffee.\n\n2. [2025-01-02]. Has a cat."
    second = "1. [2025-03-03]. Has a cat.\n2. Learns Czech."
    conversations = [
        chatgpt(
            own_id,
            node(
                f"{own_id}-m",
                "assistant",
                "",
                content={"content_type": "model_editable_context", "model_set_context": text},
                at=None,
            ),
            node(f"{own_id}-a", "user", "Hi"),
        )
        for own_id, text in (("c", first), ("d", second))
    ]
    found, report = read(tmp_path, dump(conversations))
    memories = [c for c in found if c.id.startswith("memory:")]
    assert [c.messages[0].text for c in memories] == [
        "Prefers tea\nover coffee.",
        "Has a cat.",
        "Learns Czech.",
    ]
    assert {m.role for c in memories for m in c.messages} == {"memory"}
    assert memories[0].created_at == datetime(2024, 12, 10, tzinfo=UTC)
    assert report.context_entries == 3


def test_bio_is_a_memory_in_its_place(tmp_path: Path) -> None:
    conversation = chatgpt(
        "c",
        node("a", "user", "I moved to Brno."),
        node("b", "assistant", "User lives in Brno.", recipient="bio"),
        node("d", "tool", "Model set context updated.", name="bio"),
        node("e", "assistant", "Noted."),
    )
    assert spoken(tmp_path, conversation) == [
        ("user", "I moved to Brno."),
        ("memory", "User lives in Brno."),
        ("assistant", "Noted."),
    ]


@pytest.mark.parametrize(
    ("fields", "forgotten"),
    [
        ({"is_do_not_remember": True}, True),
        ({"is_do_not_remember": False}, False),
        ({"is_do_not_remember": None}, False),
        ({"memory_scope": "global_disabled"}, True),
        ({"memory_scope": "off"}, True),
        ({"memory_scope": "none"}, True),
        ({"memory_scope": "global_enabled"}, False),
        ({"memory_scope": "project_only"}, False),
        ({"memory_scope": "project_enabled"}, False),
        ({"memory_scope": 7}, False),
        ({"is_temporary_chat": True}, True),
    ],
    ids=str,
)
def test_who_asked_not_to_be_remembered_is_not(
    tmp_path: Path, fields: dict[str, Any], *, forgotten: bool
) -> None:
    found, report = read(tmp_path, dump([talk("c", **fields), talk("d")]))
    assert [c.id for c in found] == (["d"] if forgotten else ["c", "d"])
    assert report.forgotten == forgotten
    assert report.whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (START, datetime.fromtimestamp(START, UTC)),
        (START * 1000, datetime.fromtimestamp(START, UTC)),
        (str(START), datetime.fromtimestamp(START, UTC)),
        ("2023-11-14T22:13:20Z", datetime.fromtimestamp(START, UTC)),
        ("2023-11-14T23:13:20+01:00", datetime.fromtimestamp(START, UTC)),
        ("2023-11-14 22:13:20", datetime.fromtimestamp(START, UTC)),
        *((bad, None) for bad in (None, True, 0, -5, 10**25, 1e400, float("nan"), "soon", [], {})),
    ],
    ids=repr,
)
def test_times_of_every_kind(tmp_path: Path, value: object, expected: datetime | None) -> None:
    (found,), report = read(tmp_path, dump([talk("c", create_time=value)]))
    assert found.created_at == expected
    assert report.whole


NULLS: list[Any] = [None, [], {}, "", 0, "text", [None], {"a": None}, True, -1.5]


@pytest.mark.parametrize("value", NULLS, ids=repr)
def test_null_or_wrong_types_anywhere_never_stop_the_rest(tmp_path: Path, value: Any) -> None:
    outer = ("title", "create_time", "update_time", "mapping", "current_node", "id")
    broken = [talk("x", **{key: value}) for key in outer]
    for key in ("message", "parent", "children", "id"):
        conversation = talk(f"y-{key}")
        conversation["mapping"][f"y-{key}-1"][key] = value
        broken.append(conversation)
    for key in ("author", "content", "metadata", "create_time", "weight", "recipient", "id"):
        conversation = talk(f"z-{key}")
        conversation["mapping"][f"z-{key}-1"]["message"][key] = value
        broken.append(conversation)
    for key in ("parts", "content_type"):
        conversation = talk(f"w-{key}")
        conversation["mapping"][f"w-{key}-1"]["message"]["content"][key] = value
        broken.append(conversation)
    found, report = read(tmp_path, dump([*broken, talk("last", "intact")]))
    assert found[-1].messages[0].text == "intact"
    assert report.damaged == 0


def test_conversations_without_a_visible_word_are_counted_as_empty(tmp_path: Path) -> None:
    found, report = read(
        tmp_path, dump([talk("c"), chatgpt("d"), {"title": None, "mapping": None}])
    )
    assert len(found) == 1
    assert report.empty == 2
    assert report.whole


def test_an_export_of_empty_conversations_says_why_nothing_came(tmp_path: Path) -> None:
    with pytest.raises(BadExport, match="2 without a visible message and 1 marked not to be"):
        read(tmp_path, dump([chatgpt("a"), chatgpt("b"), talk("c", is_do_not_remember=True)]))


def test_message_ids_are_unique_within_a_conversation(tmp_path: Path) -> None:
    conversation = talk("c", "one", "two", "three", "four")
    for each in conversation["mapping"].values():
        each["message"]["id"] = "same"
    (found,), _ = read(tmp_path, dump([conversation]))
    assert len({m.id for m in found.messages}) == 4


@pytest.mark.parametrize("key", ["a\x00b", "\ud800", "", "\x00"])
def test_a_message_named_only_by_its_nodes_key_has_an_id_that_can_be_stored(
    tmp_path: Path, key: str
) -> None:
    """Postgres refuses NUL, UTF-8 half a surrogate pair; one without any id is a shared text."""
    conversation = talk("c", "one", "two")
    last = conversation["mapping"].pop(conversation["current_node"])
    del last["message"]["id"]
    conversation["mapping"][key] = last
    conversation["current_node"] = key
    (found,), _ = read(tmp_path, dump([conversation]))
    assert [m.text for m in found.messages] == ["one", "two"]
    assert all(m.id and "\x00" not in m.id and m.id.encode() for m in found.messages)


def test_a_huge_title_is_cut_to_one_line(tmp_path: Path) -> None:
    (found,), _ = read(tmp_path, dump([talk("c", title="word\n" * 400_000)]))
    assert len(found.title) <= 300
    assert "\n" not in found.title


@pytest.mark.parametrize("flag", [True, 1, "true", "True"])
def test_what_is_to_be_forgotten_is_forgotten_in_whatever_state_it_is_met(
    flag: object, tmp_path: Path
) -> None:
    forgotten = talk("a", update_time=1.72e9, is_do_not_remember=flag)
    shards = {"conversations-001.json": dump([talk("a", update_time=1.71e9), talk("b")])}
    found, report = read(tmp_path, zipped({"conversations-000.json": dump([forgotten]), **shards}))
    assert [c.id for c in found] == ["b"]
    assert (report.conversations, report.forgotten) == (1, 1)
    timeless = dump([talk("a", update_time=None, is_do_not_remember=flag)])
    found, _ = read(tmp_path, zipped({"conversations-000.json": timeless, **shards}))
    assert [c.id for c in found] == ["b"]
    later = zipped({**shards, "conversations-002.json": dump([forgotten])})
    (tmp_path / "later.zip").write_bytes(later)
    told = [(c.id, len(c.messages)) for c in ExportReader(tmp_path / "later.zip", tell_forgotten=True)]  # fmt: skip
    assert told == [("a", 2), ("b", 2), ("a", 0)]
