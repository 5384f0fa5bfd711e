"""Damage: whatever breaks, the readable part is kept, the rest is accounted for, nothing hangs."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.errors import BadExport
from daemon.export import scanner
from daemon.export.reader import ExportReader
from daemon.export.streams import Limits
from tests.support.export_samples import (
    FIXTURES,
    chatgpt,
    claude,
    dump,
    gzipped,
    node,
    read,
    talk,
    zipped,
)

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.export.conversation import ReadReport

FIVE = [talk(f"c{i}", f"question {i} with text", f"answer {i}", "more") for i in range(5)]
LAYOUTS: dict[str, bytes] = {
    "compact": dump(FIVE, separators=(",", ":")),
    "spaced": dump(FIVE),
    "indented": dump(FIVE, indent=2),
    "wrapped": dump({"conversations": FIVE}),
    "lines": b"\n".join(dump(each) for each in FIVE),
}
CLAUDE = dump([claude(f"c{i}", f"question {i}", f"answer {i}") for i in range(5)])


def survivors(folder: Path, content: bytes, **options: Any) -> tuple[list[str], ReadReport | None]:
    """Read damaged bytes: the ids that came out; None for the report where nothing did."""
    try:
        found, report = read(folder, content, **options)
    except BadExport as error:
        told = str(error)
    else:
        return [c.id for c in found], report
    assert "\n" not in told
    assert told.startswith("conversations.json: ")
    return [], None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_whole(tmp_path: Path, layout: str) -> None:
    ids, report = survivors(tmp_path, LAYOUTS[layout])
    assert ids == ["c0", "c1", "c2", "c3", "c4"]
    assert report is not None
    assert report.whole


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cut_anywhere_keeps_every_conversation_before_it(tmp_path: Path, layout: str) -> None:
    content = LAYOUTS[layout]
    ends = []
    at = 0
    for i in range(5):
        at = content.index(f'"id": "c{i}"'.encode(), at) if b'": "' in content else at
        at = content.index(f"c{i}".encode(), at)
        ends.append(content.rindex(f"c{i}".encode(), at, _next_start(content, i)) + 4)
    for cut in range(1, len(content) - 1, 97):
        ids, report = survivors(tmp_path, content[:cut])
        complete = sum(end + 8 < cut for end in ends)
        assert len(ids) >= complete - 1
        assert ids == [f"c{i}" for i in range(len(ids))]
        if report is not None and layout != "lines":
            assert not report.whole
            assert report.damages


def _next_start(content: bytes, index: int) -> int:
    found = content.find(f"About c{index + 1}".encode())
    return found if found >= 0 else len(content)


@pytest.mark.parametrize("pack", [gzipped, lambda b: zipped({"conversations.json": b})])
def test_a_cut_archive_keeps_what_can_be_unpacked(tmp_path: Path, pack: Any) -> None:
    many = [talk(f"c{i}", *(f"{i}-{k} {hash((i, k))}" for k in range(8))) for i in range(400)]
    content = pack(dump(many))
    previous = 0
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        ids, report = survivors(tmp_path, content[: int(len(content) * share)])
        assert len(ids) > previous or share == 0.1
        assert len(ids) > 400 * share * 0.6
        assert report is not None
        assert not report.whole
        assert any("cut short" in damage for damage in report.damages)
        previous = len(ids)


DAMAGES: dict[str, tuple[bytes, bytes]] = {
    "a brace too few": (
        b'"recipient": "all"}, "parent": "c2-0"',
        b'"recipient": "all", "parent": "c2-0"',
    ),
    "a brace too many": (b'"parent": "c2-0"', b'"parent": "c2-0"}}'),
    "all braces closed early": (b'"title": "About c2"', b'"title": "About c2"}'),
    "a quote too few": (b'"About c2"', b'"About c2'),
    "a quote inside": (b"question 2", b'question "2'),
    "a missing comma": (b'"About c2", ', b'"About c2" '),
    "a missing value": (b'"About c2"', b""),
    "zero bytes": (b"question 2 with text", b"\x00" * 20 + b'"' + b"\x00" * 9),
    "a bracket too many": (b'"children": ["c2-1"]', b'"children": ["c2-1"]]'),
    "a bracket too few": (b'"children": ["c2-1"]', b'"children": ["c2-1"'),
    "bare text between": (b'{"title": "About c2"', b'oops, {"title": "About c2"'),
    "a number for a conversation": (b'{"title": "About c2"', b'17, {"title": "About c2"'),
}


@pytest.mark.parametrize(
    ("damage", "indent"),
    [
        (damage, indent)
        for damage, (before, _) in DAMAGES.items()
        for indent in (None, 2)
        if before in dump(FIVE, indent=indent)
    ],
)
def test_a_broken_conversation_loses_only_itself(
    tmp_path: Path, damage: str, indent: int | None
) -> None:
    before, after = DAMAGES[damage]
    content = dump(FIVE, indent=indent)
    ids, report = survivors(tmp_path, content.replace(before, after, 1))
    whole = ["c0", "c1", "c3", "c4"]
    assert [i for i in ids if i in whole] == whole
    assert len(ids) <= 5  # what is left of the broken one may come out, without its id
    assert report is not None
    assert not report.whole
    assert 1 <= report.damaged <= 2
    told = "conversations.json, item "
    assert report.damages[0].startswith((f"{told}3: ", f"{told}2: bytes after it"))


def test_a_broken_first_conversation_loses_only_itself(tmp_path: Path) -> None:
    for content in (dump(FIVE), CLAUDE):
        broken = content.replace(b'"answer 0"', b'"answer 0', 1)
        ids, report = survivors(tmp_path, broken)
        assert ids == ["c1", "c2", "c3", "c4"]
        assert report is not None
        assert report.damaged == 1


@pytest.mark.parametrize("limits", [None, Limits(held_bytes=2048, message_bytes=2048)])
def test_a_broken_first_conversation_with_other_keys_in_front_loses_only_itself(
    tmp_path: Path, limits: Limits | None
) -> None:
    """Nothing was read well yet to know the others by, and no beginning known beforehand."""
    id_first = [{"id": each["id"], **each} for each in FIVE]
    for text in (b'"answer 0', b'"answer 0" }{{ "x'):
        broken = dump(id_first).replace(b'"answer 0"', text, 1)
        ids, report = survivors(tmp_path, broken, limits=limits)
        assert ids == ["c1", "c2", "c3", "c4"]
        assert report is not None
        assert not report.whole
        assert report.damages[0].startswith("conversations.json, item 1: ")


def test_every_conversation_broken_is_told_and_quick(tmp_path: Path) -> None:
    content = b"[" + b", ".join(dump(talk(f"c{i}"))[:-1] for i in range(2000)) + b"]"
    started = time.monotonic()
    with pytest.raises(
        BadExport, match=r"no conversation could be read; 2000 damaged, first .*item 1"
    ):
        read(tmp_path, content, limits=Limits(held_bytes=2**20, message_bytes=2**20))
    assert time.monotonic() - started < 20


def test_tiny_objects_unlike_the_first_are_read_in_linear_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None looks like the conversation that was learnt: its like is not sought again for each."""
    monkeypatch.setattr(scanner, "_BLOCK_BYTES", 64)
    content = dump([talk("first")])[:-1] + b', {"title": "a", "create_time": 1}' * 60_000 + b"]"
    started = time.process_time()
    found, report = read(
        tmp_path, content.replace(b'{"title": "About', b'{"x": 1, "title": "About')
    )
    assert len(found) == 1
    assert report.empty == 60_000
    assert time.process_time() - started < 10.0  # it takes half a second; it took forty


def test_bytes_that_break_parsers_do_not_break_this_one(tmp_path: Path) -> None:
    content = (
        b"\xef\xbb\xbf"
        + dump([talk("c", "a \ud83d b", "pair \ud83d\ude00", "nul \x00 here")])[:-1]
        + b", "
        + dump(talk("d", "raw")).replace(b"raw", b"r\xff\xfew \x01")
        + b", "
        + dump(talk("e", create_time=float("nan"), update_time=float("inf"), weird=10**25))
        + b", "
        + dump(talk("f")).replace(b"1700000000.5", b"1e400")
        + b", "
        + dump(talk("g")).replace(b"1700000000.5", b"9" * 5000)
        + b"]"
    )
    found, report = read(tmp_path, content)
    assert [c.id for c in found] == ["c", "d", "e", "f"]
    assert [m.text for m in found[0].messages] == ["a \ufffd b", "pair 😀", "nul  here"]
    assert found[1].messages[0].text == "r\ufffd\ufffdw \x01"
    assert all(m.text.encode() for c in found for m in c.messages)
    assert report.damages == ["conversations.json, item 5: holds a number too long to be one"]


def test_depth_of_five_thousand(tmp_path: Path) -> None:
    deep = talk("deep")
    content = dump([deep, talk("d")]).replace(
        b'"title": "About deep"',
        b'"title": "About deep", "x": ' + b'{"x":' * 5000 + b"1" + b"}" * 5000,
    )
    ids, report = survivors(tmp_path, content)
    assert ids[-1] == "d"
    assert report is not None
    assert report.whole or "nested too deeply" in report.damages[0]
    ids, report = survivors(tmp_path, b"[" * 5000 + dump(talk("d")) + b"]" * 5000)
    assert ids == ["d"]
    with pytest.raises(BadExport):
        read(tmp_path, b'{"x":' * 100_000)


def test_duplicates_keep_the_latest_state(tmp_path: Path) -> None:
    content = zipped(
        {
            "conversations-000.json": dump([talk("a", "old", update_time=100), talk("b")]),
            "conversations-001.json": dump([talk("b"), talk("a", "new", update_time=1.8e9)]),
            "conversations-002.json": dump([talk("a", "older", update_time=1.6e9)]),
        }
    )
    found, report = read(tmp_path, content)
    assert [(c.id, c.messages[0].text) for c in found] == [
        ("a", "old"),
        ("b", "Hello from me"),
        ("a", "new"),
    ]
    assert (report.conversations, report.duplicates) == (2, 3)
    assert report.members == [f"conversations-00{i}.json" for i in range(3)]
    assert found[2].place == "conversations-001.json, item 2"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b" \n ", "white space only"),
        (b"\x00" * 5000, "zero bytes only"),
        (b"[]", "holds no conversations"),
        (b'{"conversations": []}', "holds no conversations"),
        (b"<!doctype html><html><body>Not found</body></html>", "this is an HTML page"),
        (b'<html><script>var jsonData = [{"mapping": {}}]</script>', "ChatGPT's chat.html"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"\x89PNG\r\n\x1a\n....", "a PNG image"),
        (b"\xff\xd8\xff\xe0....", "a JPEG image"),
        (b"Dear diary", "a text file without JSON"),
        (b"\xff\xfe[\x00]\x00", "UTF-16"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "a binary file"),
        (b'{"statusCode":"404","error":"not_found","message":"Object not found"}', "an error answer, not an export (Object not found)"),
        (b'[{"name": "Ann", "age": 3}]', "no chat export (its objects have the keys name, age)"),
        (b"[1, 2, 3]", "could be read"),
        (b'[{"title": "x", "mapping": {', "no conversation could be read"),
    ],
)  # fmt: skip
def test_what_is_no_export_is_told_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(BadExport) as raised:
        read(tmp_path, content)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("conversations.json: ")


def test_no_conversation_text_in_any_account(tmp_path: Path) -> None:
    content = dump([talk("a", "my secret diary"), talk("b")]).replace(
        b'"Hello', b'"Hel"lo my diary', 1
    )
    _, report = read(tmp_path, content)
    assert report.damaged == 1
    assert "diary" not in " ".join(report.damages)


def test_a_stray_object_among_conversations_is_told(tmp_path: Path) -> None:
    found, report = read(tmp_path, dump([talk("a"), {"foo": 1, "bar": 2}, 7, None, talk("b")]))
    assert [c.id for c in found] == ["a", "b"]
    assert report.damages == [
        "conversations.json, item 2: no conversation (its keys: foo, bar)",
        "conversations.json, item 3: a bare value, no object",
    ]


def test_text_that_looks_like_json_inside_a_message_is_text(tmp_path: Path) -> None:
    trap = json.dumps([talk("trap")]) + ' }}]] {"title": "x", "create_time": 1} \\" \\\\'
    found, report = read(tmp_path, dump([talk("a", trap), talk("b", trap * 200)]))
    assert [c.id for c in found] == ["a", "b"]
    assert found[0].messages[0].text == trap.strip()
    assert report.whole


SEEDS = [LAYOUTS["spaced"], LAYOUTS["wrapped"], CLAUDE, gzipped(LAYOUTS["compact"])]
SEEDS += [zipped({"x/conversations.json": LAYOUTS["compact"], "user.json": b"{}"})]
SEEDS += [p.read_bytes() for p in sorted(FIXTURES.glob("*/*")) if p.stat().st_size < 20_000]
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "cut", "drop", "insert", "repeat"]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, len(SEEDS) - 1), changes=CHANGES)
def test_no_mutation_crashes_or_goes_unaccounted(
    tmp_path: Path, seed: int, changes: list[tuple[float, str, int]]
) -> None:
    content = bytearray(SEEDS[seed])
    for place, change, value in changes:
        at = int(place * len(content))
        if change == "flip" and content:
            content[at] ^= value or 1
        elif change == "cut":
            del content[at:]
        elif change == "drop":
            del content[at : at + value]
        elif change == "insert":
            content[at:at] = bytes([value]) * 3
        else:
            content[at:at] = content[at : at + value]
    path = tmp_path / "export"
    path.write_bytes(content)
    reader = ExportReader(path, name="conversations.json")
    try:
        found = list(reader)
    except BadExport as error:
        told = str(error)
    else:
        told = ""
    if told:
        assert "\n" not in told
        assert not reader.report.whole
        return
    assert found
    for conversation in found:
        assert conversation.messages
        assert all(m.text.encode() and "\x00" not in m.text for m in conversation.messages)
    assert not (reader.report.whole and reader.report.damaged)
    assert reader.report.whole or reader.report.damages


def test_cycles_of_every_length_end(tmp_path: Path) -> None:
    for length in (1, 2, 7):
        conversation = talk("c", *(str(i) for i in range(length)))
        conversation["mapping"]["c-0"]["parent"] = f"c-{length - 1}"
        conversation["mapping"]["c-0"]["children"] = ["c-0"]
        found, _ = read(tmp_path, dump([conversation, chatgpt("d", node("x", "user", "y"))]))
        assert found[-1].id == "d"


@pytest.mark.parametrize("file", sorted(p for p in FIXTURES.glob("*/*") if p.suffix == ".json"))
def test_a_sample_cut_at_every_kilobyte_keeps_its_undamaged_conversations(
    tmp_path: Path, file: Path
) -> None:
    content = file.read_bytes()
    whole, _ = survivors(tmp_path, content)
    for cut in range(256, len(content) - 8, 1024):
        ids, report = survivors(tmp_path, content[:cut])
        assert ids == whole[: len(ids)]
        assert report is None or not report.whole
    second = content.find(b"},\n  {")
    if second > 0:  # one broken byte in the first conversation leaves the second
        ids, _ = survivors(tmp_path, content.replace(b":", b"", 1))
        assert set(whole[1:]) <= set(ids)
