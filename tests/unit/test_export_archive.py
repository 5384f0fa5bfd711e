"""Archives: shards, folders, companions; and the ones that mean harm or have come to harm."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest

from daemon.errors import BadExport
from daemon.export.reader import ExportReader
from daemon.export.streams import Limits
from tests.support.export_samples import claude, dump, gzipped, read, talk, zipped

if TYPE_CHECKING:
    from pathlib import Path

GOOD = dump([talk("c")])
SMALL = Limits(decompressed_bytes=5_000_000, ratio=100, ratio_from_bytes=100_000)


def shard(*ids: str) -> bytes:
    return dump([talk(own_id) for own_id in ids])


def test_shards_are_read_in_their_order_wherever_they_lie(tmp_path: Path) -> None:
    content = zipped(
        {
            "export/conversations-010.json": shard("k"),
            "export/conversations-002.json": shard("c"),
            "export/conversations-000.json": shard("a"),
            "__MACOSX/export/._conversations-000.json": b"\x00\x05",
            "export/._conversations-002.json": b"\x00",
            "export/export_manifest.json": b'{"files": 3}',
            "export/my-conversations.json.bak": b"no",
            "export/Conversations.JSON": shard("first"),
        }
    )
    found, report = read(tmp_path, content)
    assert [c.id for c in found] == ["first", "a", "c", "k"]
    assert [c.place for c in found][1] == "conversations-000.json, item 1"
    assert report.whole


def test_ten_thousand_shards(tmp_path: Path) -> None:
    content = zipped({f"conversations-{i:05d}.json": GOOD for i in range(10_000)}, stored=True)
    found, report = read(tmp_path, content)
    assert len(found) == 1
    assert report.duplicates == 9_999
    assert len(report.members) == 1_000
    assert report.whole


def test_content_decides_and_not_the_name_or_the_given_type(tmp_path: Path) -> None:
    for content in (GOOD, gzipped(GOOD), zipped({"conversations.json": GOOD})):
        path = tmp_path / "export.pdf"
        path.write_bytes(content)
        for file_type in ("json", "zip", None):
            assert len(list(ExportReader(path, file_type=file_type))) == 1  # type: ignore[arg-type]


def test_a_renamed_export_in_a_zip_is_found_by_its_content(tmp_path: Path) -> None:
    content = zipped({"notes.json": b'{"a": 1}', "backup 2024.json": GOOD})
    found, report = read(tmp_path, content)
    assert len(found) == 1
    assert report.members == ["backup 2024.json"]


def test_gzip_in_several_members_and_with_padding(tmp_path: Path) -> None:
    half = len(GOOD) // 2
    content = gzip.compress(GOOD[:half]) + gzip.compress(GOOD[half:]) + b"\x00" * 512
    _, report = read(tmp_path, content)
    assert report.whole
    _, report = read(tmp_path, gzipped(GOOD) + b"trailing")
    assert report.damages == ["conversations.json: other bytes follow its compressed data"]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({}, "the zip holds no files"),
        ({"a.txt": b"x", "b.png": b"y"}, "holds a.txt, b.png but no conversations"),
        ({f"{i}.txt": b"" for i in range(9)}, "holds 0.txt, 1.txt, 2.txt and 6 more but no"),
        ({"inner.zip": zipped({"conversations.json": GOOD})}, "holds inner.zip but no conversations"),
        ({"conversations.json": b"[]"}, "holds no conversations"),
        ({"conversations.json": b""}, "it is empty"),
        ({"../conversations.json": GOOD}, "../conversations.json has a path that leaves the archive"),
        ({"/etc/conversations.json": GOOD}, "has a path that leaves the archive"),
        ({"C:\\x\\conversations.json": GOOD}, "has a path that leaves the archive"),
        ({"conversations.json": b" " * 3_000_000}, "a zip bomb"),
        ({"conversations.json": GOOD + bytes(6_000_000)}, "a zip bomb"),
    ],
    ids=lambda v: v[:20] if isinstance(v, str) else None,
)  # fmt: skip
def test_zips_that_cannot_be_read_say_why(
    tmp_path: Path, members: dict[str, bytes], says: str
) -> None:
    with pytest.raises(BadExport) as raised:
        read(tmp_path, zipped(members), limits=SMALL)
    assert says in str(raised.value)
    assert str(raised.value).startswith("conversations.json: ")
    assert "\n" not in str(raised.value)


def test_an_encrypted_member_says_what_to_do(tmp_path: Path) -> None:
    content = bytearray(zipped({"conversations.json": GOOD}))
    content[6] |= 1
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1
    with pytest.raises(
        BadExport, match=r"conversations\.json is encrypted; unpack it with its pass"
    ):
        read(tmp_path, bytes(content))


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("conversations.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BadExport, match="is a symbolic link"):
        read(tmp_path, buffer.getvalue())


def test_a_refused_member_does_not_cost_the_others(tmp_path: Path) -> None:
    content = zipped({"conversations-000.json": GOOD, "../conversations-001.json": shard("d")})
    found, report = read(tmp_path, content)
    assert [c.id for c in found] == ["c"]
    assert "leaves the archive" in report.damages[0]
    assert not report.whole


def test_a_gzip_bomb_is_stopped(tmp_path: Path) -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = bomb.compress(b'[{"title": "') + b"".join(
        bomb.compress(b"x" * 1_000_000) for _ in range(8)
    )
    content += bomb.flush()
    with pytest.raises(
        BadExport, match=r"conversations\.json: conversations\.json unpacks to more"
    ):
        read(tmp_path, content, limits=SMALL)


def test_a_lying_size_does_not_get_past_the_limit(tmp_path: Path) -> None:
    content = bytearray(zipped({"conversations.json": dump([talk("c", "x" * 6_000_000)])}))
    central = content.index(b"PK\x01\x02")
    content[central + 24 : central + 28] = struct.pack("<L", 1000)
    with pytest.raises(BadExport, match=r"a zip bomb|more than the"):
        read(tmp_path, bytes(content), limits=SMALL)


def test_too_many_members_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    content = zipped({f"{i}.txt": b"" for i in range(300)} | {"conversations.json": GOOD})
    with pytest.raises(BadExport, match="the zip has more than 20 members"):
        read(tmp_path, content, limits=Limits(members=20))


def test_a_flipped_bit_is_noticed_by_the_checksum(tmp_path: Path) -> None:
    for stored in (True, False):
        content = bytearray(zipped({"conversations.json": shard("c", "d")}, stored=stored))
        if stored:
            at = content.index(b"Hello from me")
            content[at] ^= 1
        else:
            at = content.index(b"PK\x01\x02")
            content[at + 16] ^= 1
        found, report = read(tmp_path, bytes(content))
        assert len(found) == 2
        assert report.damages == [
            "conversations.json: its checksum does not match: some of it is damaged"
        ]


def test_a_zip_that_lost_its_directory_still_gives_its_members(tmp_path: Path) -> None:
    whole = zipped(
        {
            "user.json": b"{}",
            "conversations-000.json": shard("a"),
            "conversations-001.json": shard("b"),
        }
    )
    content = whole[: whole.index(b"PK\x01\x02")]
    found, report = read(tmp_path, content)
    assert [c.id for c in found] == ["a", "b"]
    assert report.damages == ["conversations.json: the zip is cut short or has lost its directory"]


def test_names_of_members_can_be_stored(tmp_path: Path) -> None:
    """A name read from a local header may hold anything, NUL among it, which Postgres refuses."""
    whole = zipped({"a-b/conversations.json": shard("a")}).replace(b"a-b/", b"a\x00b/")
    _, report = read(tmp_path, whole[: whole.index(b"PK\x01\x02")])
    assert report.members == ["a?b/conversations.json"]


def test_a_streamed_zip_that_lost_its_directory_too(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        """A sink that cannot seek, so that sizes follow the data."""

        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, piece: object) -> int:
            self.content += bytes(piece)  # type: ignore[call-overload]
            return len(piece)  # type: ignore[arg-type]

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (
            ("chat.html", b"<html>" * 99),
            ("conversations.json", shard("a", "b")),
        ):
            archive.writestr(name, content)
    found, _ = read(tmp_path, pipe.content[: pipe.content.index(b"PK\x01\x02")])
    assert [c.id for c in found] == ["a", "b"]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadExport, match=r"gone\.zip: cannot be opened \(No such file"):
        list(ExportReader(tmp_path / "gone.zip"))
    with pytest.raises(BadExport, match=r"cannot be opened \(Is a directory\)"):
        list(ExportReader(tmp_path))


def test_nothing_is_left_open_and_nothing_is_written(tmp_path: Path) -> None:
    content = zipped({"conversations.json": shard("a", "b")})
    read(tmp_path, content)
    reader = iter(ExportReader(tmp_path / "export"))
    next(reader)
    del reader  # an abandoned iteration closes the file; ResourceWarning would fail the test
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_where_a_shard_is_missing_between_others_nothing_is_taken_for_gone(tmp_path: Path) -> None:
    shards = {f"x/conversations-00{n}.json": dump([talk(f"c{n}")]) for n in (0, 1, 3)}
    found, report = read(tmp_path, zipped(shards))
    assert [c.id for c in found] == ["c0", "c1", "c3"]
    assert not report.tells_of_conversations
    _, report = read(tmp_path, zipped({**shards, "x/conversations-002.json": dump([talk("c2")])}))
    assert report.tells_of_conversations
    later = {name.replace("-00", "-10"): content for name, content in list(shards.items())[:2]}
    _, report = read(tmp_path, zipped(later))
    assert not report.tells_of_conversations  # the first hundred came in another zip


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("conversations-000.zip", True),
        ("1763839123-conversations-001.zip", True),
        ("conversations-002 (1).json.gz", True),
        ("6f1c_conversations-003_final.json", True),
        ("conversations.zip", False),
        ("conversations-2026-01-31.zip", False),
        ("my-conversations.zip", False),
    ],
)
def test_a_part_is_known_by_its_name_whatever_the_app_put_around_it(
    name: str, part: object, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(GOOD)
    assert ExportReader(path, name=f"uploads/someone/{name}").report.part is part


def test_a_file_for_each_conversation_beside_their_index(tmp_path: Path) -> None:
    content = {
        "conversations.json": dump([claude("c", chat_messages=[]), claude("d", chat_messages=[])]),
        "conversations/c.json": dump(claude("c")),
        "conversations/d.json": dump(claude("d")),
        "conversations/settings.json": b'{"a": 1}',
    }
    found, report = read(tmp_path, zipped(content))
    assert [c.id for c in found] == ["c", "d"]
    assert report.whole


def test_a_damaged_file_among_those_of_each_conversation_is_told(tmp_path: Path) -> None:
    """Passed over in silence, its conversation would be taken for deleted."""
    good = {f"conversations/c{n}.json": dump(claude(f"c{n}")) for n in range(3)}
    for damaged in (b"\x00\x01", dump(claude("d")).decode().encode("utf-16")):
        found, report = read(tmp_path, zipped({**good, "conversations/d.json": damaged}))
        assert [c.id for c in found] == ["c0", "c1", "c2"]
        assert report.damaged
        assert not report.whole


def test_any_number_of_files_of_unknown_names_is_read(tmp_path: Path) -> None:
    files = {f"chats/{n}.json": dump(claude(f"c{n}")) for n in range(250)}
    found, report = read(tmp_path, zipped(files))
    assert len(found) == 250
    assert report.whole


def test_lines_of_json_in_a_zip_are_read(tmp_path: Path) -> None:
    lines = b"\n".join(dump(claude(own_id)) for own_id in ("c", "d"))
    found, report = read(tmp_path, zipped({"data.jsonl": lines}), name="conversations-001.zip")
    assert [c.id for c in found] == ["c", "d"]
    assert (report.part, report.whole) == (True, True)


def test_gemini_is_found_behind_all_else_that_a_takeout_holds(tmp_path: Path) -> None:
    photos = {f"Takeout/Google Foto/{n}.jpg.json": dump({"title": str(n)}) for n in range(300)}
    entry = {"header": "Gemini-Apps", "title": "Prompted hi", "time": "2025-11-13T14:50:57Z"}
    activity = "Takeout/Meine Aktivitäten/Gemini-Apps/MeineAktivitäten.json"
    found, report = read(tmp_path, zipped({**photos, activity: dump([entry])}))
    assert [m.text for c in found for m in c.messages] == ["hi"]
    assert report.members == [activity]


def test_a_shard_that_was_downloaded_twice_is_read_beside_the_others(tmp_path: Path) -> None:
    names = ("conversations-000 (1).json", "conversations-001.json", "conversations_002.json")
    members = {name: shard(own_id) for name, own_id in zip(names, "cde", strict=True)}
    found, report = read(tmp_path, zipped(members))
    assert [c.id for c in found] == ["c", "d", "e"]
    assert (report.part, report.whole) == (False, True)


def test_another_apps_export_beside_the_conversations_is_told(tmp_path: Path) -> None:
    entry = {"header": "Gemini Apps", "title": "Prompted hi", "time": "2025-11-13T14:50:57Z"}
    activity = {"Takeout/My Activity/Gemini Apps/MyActivity.json": dump([entry])}
    settings = {"shopping.json": b"[]", "file-x-notes.json": b'{"a": 1}', "chat.html": b"<html>"}
    found, report = read(tmp_path, zipped({"conversations.json": GOOD, **activity, **settings}))
    assert [c.id for c in found] == ["c"]
    assert report.ignored == {"files of another export": 1}


def test_of_a_gzip_file_all_before_the_damage_is_read(tmp_path: Path) -> None:
    content = bytearray(gzipped(dump([claude(f"c{n}") for n in range(9)])))
    content[-6] ^= 1  # its checksum
    found, report = read(tmp_path, bytes(content))
    assert len(found) == 9
    assert not report.whole
    assert report.damages == ["conversations.json: its compressed data is damaged"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_text_in_the_encoding_of_old_windows_is_named(encoding: str, tmp_path: Path) -> None:
    content = GOOD.decode().encode(encoding)
    for each in (content, gzipped(content), zipped({"conversations.json": content})):
        with pytest.raises(BadExport, match=r"UTF-16 text.*save it as UTF-8"):
            read(tmp_path, each)
