"""Chunks are whole, sized, stable and turn-aligned (promises 4 and 12 rest on their spans)."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from time import perf_counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemon.errors import UsageError
from daemon.export.conversation import Conversation, Message
from daemon.fullpass.chunks import Chunk, _label, chunk, conversation_hash, tiers_for
from daemon.fullpass.tokens import estimate_tokens
from daemon.fullpass.turns import Tier, split
from daemon.settings import load_settings

MICRO = Tier("micro", 200, 0, len)
MEDIUM = Tier("medium", 120, 12, estimate_tokens)
WIDE = Tier("medium", 2_000, 200, estimate_tokens)
MACRO = Tier("macro", 5_000, 0, len)
TIERS = (MICRO, MEDIUM, WIDE, MACRO)
START = datetime(2024, 5, 1, tzinfo=UTC)

PROSE = "I moved to Lisbon in March. The flat is small, but the light is good! Was it cheap? No. "
CJK = "我三月搬到了里斯本。房子很小，但是光线很好！便宜吗？不便宜。"
EMOJI = "👩‍💻👨‍👩‍👧‍👦🇩🇪🇧🇷👋🏽❤️🏴󠁧󠁢󠁳󠁣󠁴󠁿"


def conversation(*texts: str) -> Conversation:
    messages = tuple(
        Message(f"m{n}", "user", text, START + timedelta(minutes=n)) for n, text in enumerate(texts)
    )
    return Conversation("chatgpt", "c1", "A talk", messages, START)


def pieces_of(chunks: list[Chunk], message_id: str) -> list[str]:
    return [
        c.content[s.start : s.stop] for c in chunks for s in c.spans if s.message_id == message_id
    ]


def cover(text: str, pieces: list[str], tier: Tier) -> bool:
    """Whether the pieces of a user turn are all of it: one if it fits, else less their overlaps.

    A repetitive text can be put together from its pieces in many ways, so their places are asked
    of the splitter itself.
    """
    if tier.measure(f"User: {text}") <= tier.size:
        return pieces == [text]
    spans = list(split(text, _label("User", tier), _label("User (continued)", tier), tier))
    covered = 0
    for start, stop in spans:
        assert start <= covered < stop, "a gap, or a piece that adds nothing"
        assert start == covered or tier.overlap, "an overlap that was not asked for"
        covered = stop
    return covered == len(text) and [text[a:b] for a, b in spans] == pieces


blocks = st.one_of(
    st.text(max_size=400),
    st.text(alphabet="ab .\n\r", max_size=600),
    st.builds(lambda t, n: t * n, st.sampled_from([PROSE, CJK, EMOJI, "x", "é", "\r\n", " "]),
              st.integers(1, 60)),
)  # fmt: skip
texts = st.builds("".join, st.lists(blocks, max_size=3))
talks = st.lists(texts, max_size=8)


@pytest.mark.parametrize("tier", TIERS, ids=lambda t: f"{t.name}-{t.size}")
@given(talks)
@example([PROSE * 40, "", "a", CJK * 200, EMOJI * 100])
@example([" " * 9_000 + EMOJI * 300])
@settings(max_examples=60, derandomize=True, deadline=None)
def test_nothing_is_dropped_and_no_chunk_is_too_big(tier: Tier, talk: list[str]) -> None:
    told = conversation(*talk)
    chunks = chunk(told, tier)
    assert [c.index for c in chunks] == list(range(len(chunks)))
    assert {c.total for c in chunks} <= {len(chunks)}
    assert len({c.content_hash for c in chunks}) == len(chunks)
    for c in chunks:
        assert tier.measure(c.content) <= tier.size
        assert c.token_count == estimate_tokens(c.content)
    for message in told.messages:
        pieces = pieces_of(chunks, message.id)
        if not message.text:
            assert pieces == []
        else:
            assert cover(message.text, pieces, tier)


@given(talks, texts.filter(bool))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_appended_text_changes_the_last_chunk_only(talk: list[str], more: str) -> None:
    before = chunk(conversation(*talk), MEDIUM)
    after = chunk(conversation(*talk, more), MEDIUM)
    kept = [c.content_hash for c in before[:-1]]
    assert [c.content_hash for c in after[: len(kept)]] == kept


@given(st.lists(st.text(max_size=80), min_size=2, max_size=40))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_the_estimate_of_joined_turns_is_no_more_than_the_sum(parts: list[str]) -> None:
    joined = ["\n\n" + part for part in parts]
    assert estimate_tokens("".join(joined)) <= sum(map(estimate_tokens, joined))


def test_a_turn_that_fits_is_never_cut() -> None:
    turns = [PROSE * n for n in (1, 2, 1, 2, 2, 1, 1)]
    assert all(estimate_tokens(f"User: {turn}") <= MEDIUM.size for turn in turns)
    chunks = chunk(conversation(*turns), MEDIUM)
    assert len(chunks) > 1
    assert [
        c.content[s.start : s.stop] for c in chunks for s in c.spans
    ] == turns  # each once, whole, in order


def test_a_long_turn_is_cut_at_sentence_ends_and_its_pieces_overlap() -> None:
    sentences = [f"I ran on day {n}." for n in range(400)]
    text = " ".join(sentences)
    chunks = chunk(conversation(text), MEDIUM)
    pieces = pieces_of(chunks, "m0")
    assert len(pieces) > 10
    for first, second in pairwise(pieces):
        assert first.endswith(". ")
        assert second.startswith("I ran")
        overlap = max(n for n in range(len(second)) if first.endswith(second[:n]))
        assert 0 < estimate_tokens(second[:overlap]) <= MEDIUM.overlap
    assert all(chunk.content.startswith("User (continued): ") for chunk in chunks[1:])


def test_chinese_is_cut_at_its_own_sentence_ends() -> None:
    pieces = pieces_of(chunk(conversation(CJK * 100), MEDIUM), "m0")
    assert all(piece.endswith(("。", "！", "？")) for piece in pieces)


@pytest.mark.parametrize(
    ("unit", "parts"),
    [
        ("👨‍👩‍👧‍👦", "👨‍👩‍👧‍👦"),
        ("🇩🇪", "🇩🇪"),
        ("👋🏽", "👋🏽"),
        ("❤️", "❤️"),
        ("e\u0301", "e\u0301"),
        ("क्षि", "क्षि"),
        ("각", "\u1100\u1161\u11a8"),
        ("x\r\n", "x\r\n"),
    ],
)
@pytest.mark.parametrize("tier", [MICRO, MEDIUM], ids=["micro", "medium"])
def test_what_is_drawn_as_one_character_stays_together(unit: str, parts: str, tier: Tier) -> None:
    for piece in pieces_of(chunk(conversation(parts * 1_500), tier), "m0"):
        assert not piece.startswith(tuple(parts[1:])), unit
        assert piece.endswith(parts[-1])


def test_a_stack_of_a_thousand_accents_is_cut_rather_than_kept_for_ever() -> None:
    pieces = pieces_of(chunk(conversation("e" + "\u0301" * 3_000), MICRO), "m0")
    assert "".join(pieces) == "e" + "\u0301" * 3_000


@pytest.mark.parametrize(
    "text",
    ["x" * 5_000_000, "漢" * 2_000_000, (PROSE * 60_000)[:5_000_000], " " * 5_000_000,
     "\n" * 5_000_000, "." * 5_000_000, EMOJI * 60_000],
    ids=["letters", "han", "prose", "spaces", "lines", "dots", "emoji"],
)  # fmt: skip
def test_a_huge_turn_is_cut_in_linear_time(text: str) -> None:
    started = perf_counter()
    chunks = chunk(conversation(text), WIDE)
    # A generous deadline: it takes a second or two, and a quadratic splitter an hour.
    assert perf_counter() - started < 30
    assert sum(s.stop - s.start for c in chunks for s in c.spans) >= len(text)


def test_many_short_turns_are_packed_in_linear_time() -> None:
    chunks = chunk(conversation(*["ok"] * 20_000), WIDE)
    assert sum(len(c.spans) for c in chunks) == 20_000
    assert all(c.token_count > WIDE.size * 0.6 for c in chunks[:-1])


def test_a_conversation_without_text_has_no_chunks() -> None:
    assert chunk(conversation(), WIDE) == []
    assert chunk(conversation("", ""), WIDE) == []


def test_two_equal_chunks_of_a_conversation_are_two_chunks() -> None:
    same = Message("m", "user", PROSE * 2, START)
    chunks = chunk(Conversation("chatgpt", "c1", "", (same,) * 6), MEDIUM)
    assert len(chunks) > 1
    assert len({c.content_hash for c in chunks}) == len(chunks)


def test_hashes_do_not_change_from_release_to_release() -> None:
    """A changed hash would make every export new text, and every call paid again (promise 3)."""
    (only,) = chunk(conversation("I moved to Lisbon.", "Noted."), WIDE)
    assert only.content == "User: I moved to Lisbon.\n\nUser: Noted."
    assert only.content_hash == ("7b9d92a7886b065f3e16a156d7c9f7f87a27525f5694a51baf4973ec5e090ecd")
    assert conversation_hash(conversation("I moved to Lisbon."), (WIDE,)) == (
        "8f120e6a97a4ac0b7e7300d1439db401d122c8bb4c514909b3c7f63ff075e13d"
    )


def test_the_hash_of_a_conversation_follows_all_that_decides_its_chunks() -> None:
    told = conversation("I moved to Lisbon.")
    changed = [
        conversation_hash(told, (WIDE,)),
        conversation_hash(told, (WIDE, MACRO)),
        conversation_hash(conversation("I moved to Porto."), (WIDE,)),
        conversation_hash(Conversation("chatgpt", "c1", "Other", told.messages, START), (WIDE,)),
        conversation_hash(Conversation("chatgpt", "c1", "A talk", told.messages), (WIDE,)),
    ]
    assert len(set(changed)) == len(changed)


def test_lone_surrogates_are_hashed_and_not_fatal() -> None:
    told = conversation("a \ud83d b")
    assert chunk(told, WIDE)[0].content_hash != chunk(conversation("a  b"), WIDE)[0].content_hash
    assert conversation_hash(told, (WIDE,))


def test_the_smallest_tier_sizes_still_hold_everything() -> None:
    told = conversation(PROSE, EMOJI, CJK)
    for tier in (Tier("micro", 20, 0, len), Tier("medium", 50, 25, estimate_tokens)):
        chunks = chunk(told, tier)
        assert all(tier.measure(c.content) <= tier.size for c in chunks)
        assert all(cover(m.text, pieces_of(chunks, m.id), tier) for m in told.messages)


def test_any_mix_of_scripts_keeps_spans_exact() -> None:
    rng = random.Random(4)
    parts = [
        PROSE,
        CJK,
        EMOJI,
        "مرحبا، انتقلت إلى لشبونة. ",
        "Я переехал в Лиссабон. ",
        "{'a': 1}\n",
    ]
    for _ in range(20):
        text = "".join(rng.choice(parts) * rng.randint(1, 30) for _ in range(8))
        assert cover(text, pieces_of(chunk(conversation(text), MEDIUM), "m0"), MEDIUM)


def test_tiers_follow_the_names_the_database_accepts() -> None:
    chosen = load_settings(chunk_tiers="micro,large")
    accepted = {"micro": "small", "medium": "medium", "macro": "large"}
    assert [t.name for t in tiers_for(chosen, accepted)] == ["small", "medium", "large"]
    assert [t.name for t in tiers_for(load_settings(chunk_tiers="medium"), accepted)] == ["medium"]
    with pytest.raises(
        UsageError, match=r"^CHUNK_TIERS: this database accepts medium .* not micro, large$"
    ):
        tiers_for(chosen, {"medium": "medium"})
