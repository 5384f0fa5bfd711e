"""A conversation too large to be held is read message by message, to the same result (promise 7)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.errors import BadExport
from daemon.export import members, scanner
from daemon.export.reader import ExportReader
from daemon.export.streams import Limits
from daemon.fullpass.chunks import chunk, conversation_hash
from daemon.fullpass.tokens import estimate_tokens
from daemon.fullpass.turns import Tier
from tests.support.export_samples import FIXTURES, chatgpt, claude, dump, node, read, talk, zipped

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.export.conversation import Conversation, ReadReport

NOTHING_HELD = Limits(held_bytes=1)
"""Every object is too large to be held."""
TIER = Tier("medium", 60, 6, estimate_tokens)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small samples then end in many blocks, as large objects do."""
    monkeypatch.setattr(scanner, "_BLOCK_BYTES", 61)
    monkeypatch.setattr(members, "_BLOCK_BYTES", 53)


def branched() -> dict[str, Any]:
    nodes = [
        node(f"n{i}", "assistant" if i % 2 else "user", f'text {i} \\ " }} ]') for i in range(6)
    ]
    nodes.append(node("edited", "user", "said otherwise", parent="n3", at=1_800_000_000))
    return chatgpt("b", *nodes)


def linked_claude() -> dict[str, Any]:
    told = claude("k", "one", "two", "three", "four")
    for i, message in enumerate(told["chat_messages"]):
        message["parent_message_uuid"] = f"k-{i - 1}" if i else None
    told["chat_messages"][3]["parent_message_uuid"] = "k-1"
    told["chat_messages"][0]["attachments"] = [{"file_name": "a", "extracted_content": "pasted"}]
    return told


SAMPLES: dict[str, bytes] = {
    "talks": dump([talk(f"c{i}", f"q {i}", f"a {i}", "more") for i in range(5)]),
    "indented": dump([talk("a"), branched()], indent=2),
    "no current node": dump([chatgpt("b", *branched()["mapping"].values(), current_node=None)]),
    "unlinked": dump([chatgpt("u", node("x", "user", "one", at=5e8), node("y", "user", "two"))]).replace(b'"parent": "x"', b'"parent": null'),
    "without ids": dump([talk("a", id=None, conversation_id=None)]),
    "nulls": dump([talk("a", x=None, gizmo_id=None, tags=[], more={"y": [{"}": "]"}]})]),
    "twice the same message id": dump([chatgpt("t", node("x", "user", "one"), {**node("y", "user", "two"), "message": {**node("x", "user", "two")["message"]}})]),
    "secrets": dump([talk("s", "my key is sk-ant-api03-" + "aB3" * 30, "noted")]),
    "forgotten": dump([talk("f", is_do_not_remember=True), talk("a")]),
    "context": dump([chatgpt("i", node("ctx", "user", "", content={"content_type": "user_editable_context", "user_profile": "I am Ann", "user_instructions": "Be brief"}), node("x", "user", "hi"))]),
    "claude": dump([linked_claude(), claude("l")]),
    "astral": dump([talk("a", "\ud83d lone", "pair \ud83d\ude00", "nul \x00 x", "漢字")]),
}  # fmt: skip
SAMPLES |= {
    str(path.relative_to(FIXTURES)): path.read_bytes()
    for path in sorted(FIXTURES.glob("*/*.json"))
    if "gemini" not in str(path)
}


def essence(found: list[Conversation]) -> list[tuple[Any, ...]]:
    return [
        (c.source, c.id, c.title, tuple(c.messages), c.created_at, c.updated_at, c.place)
        for c in found
    ]


@pytest.mark.parametrize("sample", SAMPLES)
def test_what_waits_on_disk_comes_out_as_what_is_held(tmp_path: Path, sample: str) -> None:
    held, account = read(tmp_path, SAMPLES[sample])
    large, other = read(tmp_path, SAMPLES[sample], limits=NOTHING_HELD)
    assert essence(large) == essence(held)
    assert any(not isinstance(c.messages, tuple) for c in large)
    assert other == account
    for one, two in zip(held, large, strict=True):
        assert conversation_hash(one, (TIER,)) == conversation_hash(two, (TIER,))
        assert chunk(one, TIER) == chunk(two, TIER)


@pytest.mark.parametrize("indent", [None, 2])
def test_what_a_large_conversation_holds_may_begin_as_conversations_do(
    tmp_path: Path, indent: int | None
) -> None:
    own = {"uuid": "k", "name": "Talk", "project": {"uuid": "p", "name": "Kites"}}
    told = {**linked_claude(), **own}
    told["chat_messages"][0]["files"] = [{"uuid": "f", "name": "sail.pdf"}]
    content = dump([claude("a"), {**own, **told}, claude("z")], indent=indent)
    held, account = read(tmp_path, content)
    large, other = read(tmp_path, content, limits=NOTHING_HELD)
    assert [c.id for c in held] == ["a", "k", "z"]
    assert essence(large) == essence(held)
    assert other == account


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ((b'"text 2', b"text 2"), ""),
        ((b'"parent": "n2"', b'"parent": "n2"}'), ""),
        ((b'"title": "About b", ', b'"title": "About b" '), "not valid JSON"),
        ((b'"weight": 1.0', b'"weight": 1' + b"0" * 5000), "a number too long"),
        ((b'"children": ["n1"]', b'"children": ["n1"'), "not valid JSON"),
        ((b'{"id": "n0"', b'17, {"id": "n0"'), "not valid JSON"),
    ],
)
def test_damage_in_a_large_conversation_costs_it_whole_and_nothing_else(
    tmp_path: Path, damage: tuple[bytes, bytes], says: str
) -> None:
    content = dump([talk("a"), branched(), talk("c"), talk("d")])
    broken = (
        content.replace(*damage, 1)
        if damage[0] not in dump(talk("a"))
        else content.replace(dump(branched()), dump(branched()).replace(*damage, 1))
    )
    assert broken != content
    found, report = read(tmp_path, broken, limits=NOTHING_HELD)
    assert {"a", "d"} <= {c.id for c in found}
    assert "b" not in {c.id for c in found}
    assert not report.whole
    assert report.damages[0].startswith("conversations.json, item 2: ")
    assert says in report.damages[0]


def test_a_cut_at_every_byte_of_a_large_conversation_never_gives_half_of_it(tmp_path: Path) -> None:
    content = dump([talk("a"), branched()])
    whole, _ = read(tmp_path, content)
    for cut in range(1, len(content) - 1, 7):
        try:
            found, report = read(tmp_path, content[:cut], limits=NOTHING_HELD)
        except BadExport:
            continue
        assert essence(found) == essence(whole)[: len(found)]
        assert not report.whole


def test_a_message_beyond_the_limit_costs_its_conversation_and_is_named(tmp_path: Path) -> None:
    limits = Limits(held_bytes=2**17, message_bytes=2**17)
    content = dump([talk("a"), talk("big", "x" * 300_000), talk("b")])
    found, report = read(tmp_path, content, limits=limits)
    assert [c.id for c in found] == ["a", "b"]
    assert report.damages == ["conversations.json, item 2: holds a message larger than 0.125 MB"]
    found, report = read(tmp_path, content[:-100_000], limits=limits)
    assert [c.id for c in found] == ["a"]
    assert "cut short" in report.damages[0]


def test_a_large_object_that_is_no_conversation_is_named(tmp_path: Path) -> None:
    odd = {
        "title": "x",
        "time": "2024-01-01T00:00:00Z",
        "header": "Gemini Apps",
        "z": ["y" * 200_000],
    }
    limits = Limits(held_bytes=2**17)
    found, report = read(tmp_path, dump([talk("a"), odd, talk("b")]), limits=limits)
    assert [c.id for c in found] == ["a", "b"]
    assert report.damages == [
        "conversations.json, item 2: larger than 0.125 MB, and no conversation"
    ]


SEEDS = [SAMPLES["talks"], SAMPLES["claude"], SAMPLES["indented"], zipped({"conversations.json": SAMPLES["talks"]})]  # fmt: skip


@settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    seed=st.integers(0, len(SEEDS) - 1),
    place=st.floats(0, 1, exclude_max=True),
    new=st.binary(max_size=3),
    dropped=st.integers(0, 40),
    held=st.sampled_from([1, 300, 700]),
)
def test_no_mutation_crashes_the_second_level(
    tmp_path: Path, *, seed: int, place: float, new: bytes, dropped: int, held: int
) -> None:
    content = bytearray(SEEDS[seed])
    at = int(place * len(content))
    content[at : at + dropped] = new
    path = tmp_path / "export"
    path.write_bytes(content)
    reader = ExportReader(path, name="conversations.json", limits=Limits(held_bytes=held))
    report: ReadReport = reader.report
    try:
        found = list(reader)
    except BadExport:
        assert not reader.report.whole
        return
    assert all(len(c.messages) for c in found)
    assert report.whole or report.damages


MEASURED = """
import os, sys
from pathlib import Path
from daemon.export.reader import ExportReader
from daemon.memory_gauge import peak_rss_bytes_of
reader = ExportReader(Path(sys.argv[1]))
count = sum(1 for c in reader for m in c.messages)
assert reader.report.whole, reader.report.damages
print(count, peak_rss_bytes_of(os.getpid()))
"""


def test_memory_follows_the_largest_message_not_the_conversation(tmp_path: Path) -> None:
    peaks = []
    for nodes in (3_000, 12_000):
        path = tmp_path / f"{nodes}.json"
        text = "word " * 600
        mapping = {
            f"n{i}": {
                "parent": f"n{i - 1}" if i else None,
                "message": {"id": f"n{i}", "author": {"role": "user"}, "create_time": 1.7e9 + i,
                            "content": {"content_type": "text", "parts": [f"{i} {text}"]}},
            }
            for i in range(nodes)
        }  # fmt: skip
        path.write_text(
            json.dumps([{"id": "c", "mapping": mapping, "current_node": f"n{nodes - 1}"}])
        )
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(path)], capture_output=True, check=True, text=True
        )
        count, peak_bytes = map(int, done.stdout.split())
        assert count == nodes
        peaks.append(peak_bytes)
    # Four times the bytes, 27 MB more, cost an index of nine thousand nodes more.
    assert peaks[1] < peaks[0] + 16_000_000


def test_signs_of_life_come_at_each_look_at_a_large_conversation(tmp_path: Path) -> None:
    """It is hashed, counted and cut by turns; each takes minutes where it is large enough."""
    path = tmp_path / "c.json"
    path.write_bytes(dump([talk("c", *(["hello"] * 300))]))
    signs: list[None] = []
    limits = Limits(held_bytes=4096)
    ((found),) = ExportReader(path, limits=limits, on_read=lambda: signs.append(None))
    for _ in range(2):
        signs.clear()
        assert len(list(found.messages)) == 300
        assert len(signs) >= 300
