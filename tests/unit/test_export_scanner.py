"""The scanner finds exactly the objects that a JSON parser finds, however the bytes arrive."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.export.scanner import ObjectScanner, Span
from daemon.export.values import DecodeError, decode
from tests.support.export_samples import dump, talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TRICKY = st.text(st.sampled_from('\\"{}[],: \n\u00e9\u4e2d\U0001f600ab'), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.lists(st.dictionaries(TRICKY, VALUES, max_size=5), max_size=8)


def pieces(content: bytes, sizes: list[int]) -> Callable[[int], bytes]:
    """A stream that gives bytes in pieces of these sizes, over and over."""

    def stream() -> Iterator[bytes]:
        at = turn = 0
        while at < len(content):
            size = sizes[turn % len(sizes)]
            yield content[at : at + size]
            at, turn = at + size, turn + 1
        while True:
            yield b""

    source = stream()
    return lambda _size: next(source)


def scanned(read: Callable[[int], bytes], *, guessing: bool = True) -> tuple[list[Any], bool]:
    scanner = ObjectScanner(read, object_bytes=2**24)
    found = []
    while (span := scanner.next_span()) is not None:
        if span.guessed and not decodes(scanner, span):
            span = scanner.measure(span)
        assert not span.problem
        assert not span.guessed or guessing
        with scanner.view(span) as view:
            found.append(json.loads(bytes(view)))
        if guessing:
            scanner.learn(span)
    return found, scanner.closed


def decodes(scanner: ObjectScanner, span: Span) -> bool:
    with scanner.view(span) as view:
        try:
            decode(view, strict=True)
        except DecodeError:
            return False
        return True


@pytest.mark.parametrize("size", range(1, 16))
def test_what_is_no_object_is_the_same_wherever_the_pieces_end(size: int) -> None:
    found, closed = scanned(pieces(b'[{"a": 1}, null, {"b": 2}, null, null]', [size]))
    assert found == [{"a": 1}, {"b": 2}]
    assert closed


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    objects=OBJECTS,
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    wrapped=st.booleans(),
)
def test_it_finds_what_a_parser_finds(
    objects: list[Any], indent: int | None, sizes: list[int], *, ascii_only: bool, wrapped: bool
) -> None:
    value = {"a": [1, "]"], "conversations": objects, "z": {}} if wrapped else objects
    content = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    found, closed = scanned(pieces(content, sizes))
    assert found == objects
    assert closed


@pytest.mark.parametrize("text", ["\\", '"', "\\\\", '\\"', '\\\\"', "}", "{", "\\" * 9 + '"'])
@pytest.mark.parametrize("size", [16_383, 16_384, 16_385, 32_768])
def test_strings_across_the_ends_of_blocks(text: str, size: int) -> None:
    objects = [{"x": "y" * (size - 12 - back) + text * 3, "n": {"m": text}} for back in range(12)]
    found, closed = scanned(io.BytesIO(dump(objects)).read)
    assert found == objects
    assert closed


LIKE_A_START = {"title": "not one", "create_time": 2, "in": {"title": "nor this", "create_time": 3}}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    values=st.lists(
        st.tuples(st.sampled_from([None, LIKE_A_START]), TRICKY, VALUES), min_size=1, max_size=8
    ),
    between=st.sampled_from([",", ",\n", " , ", ",,", "\n\n,\t", "," + " " * 300]),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_a_guessed_end_is_the_end_or_is_found_out(
    values: list[tuple[object, str, object]], between: str, sizes: list[int]
) -> None:
    objects = [
        {
            "title": f'{{"title": "{text}", "create_time": 1',
            "create_time": 1,
            "in": inner,
            "v": value,
        }
        for inner, text, value in values
    ]
    content = ("[" + between.join(json.dumps(o) for o in objects) + "]").encode()
    assert scanned(pieces(content, sizes)) == (objects, True)
    assert scanned(pieces(content, sizes), guessing=False) == (objects, True)


def test_most_ends_are_guessed_right() -> None:
    scanner = ObjectScanner(
        io.BytesIO(dump([talk(str(n)) for n in range(50)])).read, object_bytes=2**20
    )
    guessed = 0
    while (span := scanner.next_span()) is not None:
        assert decodes(scanner, span)
        scanner.learn(span)
        guessed += span.guessed
    assert guessed == 48  # all but the first, which is learnt from, and the last


def test_a_view_must_be_released_before_going_on() -> None:
    scanner = ObjectScanner(io.BytesIO(dump([{"a": 1}, {"b": 2}])).read, object_bytes=1000)
    span = scanner.next_span()
    assert span is not None
    with scanner.view(span), pytest.raises(BufferError):
        scanner.next_span()


READ = """
import resource, sys
from pathlib import Path
from daemon.export.reader import ExportReader
count = sum(len(c.messages) for c in ExportReader(Path(sys.argv[1])))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(path: Path) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, check=True, text=True
    )
    count, kilobytes = done.stdout.split()
    return int(count), int(kilobytes) // (1024 if sys.platform == "darwin" else 1)


def test_memory_does_not_grow_with_the_export(tmp_path: Path) -> None:
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    conversation = dump(talk("c", *(f"message {i} " + "word " * 60 for i in range(100))))[1:]
    peaks = []
    for megabytes in (2, 24):
        path = tmp_path / f"{megabytes}.json"
        times = megabytes * 1_000_000 // len(conversation)
        with path.open("wb") as file:
            file.write(b"[")
            for i in range(times):
                file.write(b"," if i else b"")
                file.write(b'{"id": "x%d", ' % i + conversation.replace(b'"id": "c"}', b'"y": 0}'))
            file.write(b"]")
        count, kilobytes = peak(path)
        assert count == times * 100
        peaks.append(kilobytes)
    assert peaks[1] < peaks[0] + 4_000


def test_tiny_objects_are_no_work(tmp_path: Path) -> None:
    """Each was counted in a block of its own, sixteen kilobytes of it."""
    content = b"[" + b",".join([b'{"a":1}'] * 100_000) + b"]"
    scanner = ObjectScanner(io.BytesIO(content).read, object_bytes=2**24)
    began = time.process_time()
    assert sum(1 for _ in iter(scanner.next_span, None)) == 100_000
    assert time.process_time() - began < 5.0


def test_what_stands_in_a_list_inside_a_large_conversation_is_no_other_conversation() -> None:
    def talk(n: int) -> dict[str, object]:
        inner = [{"uuid": "p1", "name": "one"}, {"uuid": "p2", "name": "two"}]
        return {"uuid": str(n), "name": "n", "summary": "", "projects": inner, "text": "x" * 3_000}

    scanner = ObjectScanner(
        io.BytesIO(dump([talk(1), {**talk(2), "text": "y" * 300_000}, talk(3)])).read,
        object_bytes=100_000,
    )
    first, large = scanner.next_span(), None
    assert first is not None
    scanner.learn(first)
    large = scanner.next_span()
    assert large is not None
    if large.guessed:
        large = scanner.measure(large)
    assert large.large
    assert json.loads(b"".join(scanner.pieces()))["uuid"] == "2"
    assert not scanner.problem
    last = scanner.next_span()
    assert last is not None
    with scanner.view(last) as view:
        assert json.loads(bytes(view))["uuid"] == "3"
