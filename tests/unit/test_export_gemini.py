"""Gemini's rules: prompts out of everybody else's activity, in JSON and as the page shows them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from daemon.errors import BadExport
from daemon.export.html_text import html_to_text
from tests.support.export_samples import dump, read, zipped

if TYPE_CHECKING:
    from pathlib import Path

AT = "2025-11-13T14:50:57Z"
CELL = """<div class="outer-cell mdl-cell"><div class="mdl-grid">
<div class="header-cell mdl-cell"><p class="mdl-typography--title">{product}<br></p></div>
<div class="content-cell mdl-cell mdl-typography--body-1">{text}</div>
<div class="content-cell mdl-cell mdl-typography--body-1 mdl-typography--text-right"></div>
<div class="content-cell mdl-typography--caption"><b>Products:</b><br>Gemini Apps</div>
</div></div>"""


def entry(title: str, **fields: Any) -> dict[str, Any]:
    return {
        "header": "Gemini Apps",
        "title": title,
        "time": AT,
        "products": ["Gemini Apps"],
        **fields,
    }


def page(*cells: tuple[str, str]) -> bytes:
    body = "".join(CELL.format(product=product, text=text) for product, text in cells)
    return f"<html><head><title>My Activity</title></head><body>{body}</body></html>".encode()


def test_prompt_and_answer_make_a_conversation(tmp_path: Path) -> None:
    answer = {"html": "<p>Try <b>these</b>:</p><ul><li>Bread</li><li>Tea &amp; milk</li></ul>"}
    (found,), report = read(tmp_path, dump([entry("Prompted what to buy?", safeHtmlItem=[answer])]))
    assert [(m.role, m.text) for m in found.messages] == [
        ("user", "what to buy?"),
        ("assistant", "Try these:\n\n- Bread\n- Tea & milk"),
    ]
    assert found.created_at == datetime(2025, 11, 13, 14, 50, 57, tzinfo=UTC)
    assert found.title == "what to buy?"
    assert report.source == "gemini"


def test_other_products_and_other_deeds_are_counted(tmp_path: Path) -> None:
    entries = [
        entry("Prompted hello"),
        entry("Created a canvas"),
        entry("Visited a page", header="Chrome", products=["Chrome"]),
        entry("Asked Bard: old question", header="Bard", products=["Bard"]),
    ]
    found, report = read(tmp_path, dump(entries))
    assert [c.messages[0].text for c in found] == ["hello", "old question"]
    assert report.ignored == {"Gemini activity: Created": 1, "Chrome activity": 1}
    assert report.whole


def test_a_title_in_another_language_is_kept_whole(tmp_path: Path) -> None:
    (found,), _ = read(
        tmp_path, dump([entry("Gesendeter Prompt: Was kochen?", header="Gemini-Apps")])
    )
    assert found.messages[0].text == "Gesendeter Prompt: Was kochen?"


@pytest.mark.parametrize(
    "title",
    [
        "使用: Gemini アプリ",
        "Gemini-Apps verwendet",
        "「x」というタイトルの Gemini Canvas を作成しました",
    ],
)
def test_other_deeds_are_counted_in_other_languages_too(tmp_path: Path, title: str) -> None:
    answered = entry(title, safeHtmlItem=[{"html": "<p>Yes.</p>"}])
    found, report = read(
        tmp_path, dump([entry(title), answered, entry("送信したメッセージ: お茶は?")])
    )
    assert [[m.text for m in c.messages] for c in found] == [
        [title, "Yes."],
        ["送信したメッセージ: お茶は?"],
    ]
    assert report.ignored == {"Gemini activity: other": 1}


def test_a_picture_alone_is_no_word_of_the_persons(tmp_path: Path) -> None:
    """The JSON then has a bare verb, and the page the names of the files below it."""
    json = [
        entry("Prompted ", safeHtmlItem=[{"html": "<p>A cat.</p>"}], imageFile="cat.png"),
        entry("Prompted whose?", time="2025-11-13T14:51:57Z", attachedFiles=["a.png", "b.png"]),
    ]
    files = "Attached 2 files.<br>-&nbsp; a.png<br>-&nbsp; b.png<br>"
    cells = page(
        (
            "Gemini Apps",
            "Prompted&nbsp;<br>Attached 1 image.<br>-&nbsp; cat.png<br>"
            "Nov 13, 2025, 2:50:57 PM UTC<br><p>A cat.</p>",
        ),
        ("Gemini Apps", f"Prompted&nbsp;whose?<br>{files}Nov 13, 2025, 2:51:57 PM UTC<br>"),
    )
    for content in (dump(json), cells):
        found, _ = read(tmp_path, content)
        assert [[(m.role, m.text) for m in c.messages] for c in found] == [
            [("assistant", "A cat.")],
            [("user", "whose?")],
        ]


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Nov 13, 2025, 9:50:57\u202fAM CST", datetime(2025, 11, 13, 15, 50, 57, tzinfo=UTC)),
        ("Nov 13, 2025, 9:50:57 PM UTC", datetime(2025, 11, 13, 21, 50, 57, tzinfo=UTC)),
        ("13 Nov 2025, 09:50:57 GMT+01:00", datetime(2025, 11, 13, 8, 50, 57, tzinfo=UTC)),
        ("13.11.2025, 09:50:57 MEZ", datetime(2025, 11, 13, 8, 50, 57, tzinfo=UTC)),
        ("2025/11/13 9:50:57 JST", datetime(2025, 11, 13, 0, 50, 57, tzinfo=UTC)),
        ("13 janv. 2025, 09:50:57 CET", datetime(2025, 1, 13, 8, 50, 57, tzinfo=UTC)),
        ("13 août 2025, 09:50:57 UTC+2", datetime(2025, 8, 13, 7, 50, 57, tzinfo=UTC)),
        ("13 de dez. de 2025, 21:50:57 BRT", datetime(2025, 12, 14, 0, 50, 57, tzinfo=UTC)),
        ("13 paź 2025, 09:50:57 CEST", datetime(2025, 10, 13, 7, 50, 57, tzinfo=UTC)),
        ("13 Ağu 2025 09:50:57 TRT", datetime(2025, 8, 13, 6, 50, 57, tzinfo=UTC)),
        ("13 мая 2025 г., 09:50:57 MSK", datetime(2025, 5, 13, 6, 50, 57, tzinfo=UTC)),
        ("2025年11月13日 9:50:57 JST", datetime(2025, 11, 13, 0, 50, 57, tzinfo=UTC)),
        ("2025. 11. 13. 오후 9:50:57 KST", datetime(2025, 11, 13, 12, 50, 57, tzinfo=UTC)),
        ("13 thg 11, 2025, 9:50:57 CH ICT", datetime(2025, 11, 13, 14, 50, 57, tzinfo=UTC)),
        ("١٣/١١/٢٠٢٥، ٩:٥٠:٥٧ م", datetime(2025, 11, 13, 21, 50, 57, tzinfo=UTC)),
    ],
)
def test_the_page_gives_the_same_as_the_json(tmp_path: Path, date: str, expected: datetime) -> None:
    text = f"Prompted what to buy?<br>{date}<br><p>Bread.</p>"
    found, report = read(tmp_path, page(("Chrome", "Visited x"), ("Gemini Apps", text)))
    assert [[(m.role, m.text) for m in c.messages] for c in found] == [
        [("user", "what to buy?"), ("assistant", "Bread.")]
    ]
    assert found[0].created_at == expected
    assert report.ignored == {"Chrome activity": 1}
    assert report.whole


def test_lines_of_a_log_are_not_the_date_of_an_entry(tmp_path: Path) -> None:
    log = "2025-11-12 08:00:00 ERROR refused"
    date = "Nov 13, 2025, 2:50:57 PM UTC"
    text = f"Prompted why?<br>{log}<br>Thanks<br>{date}<br><p>See</p><pre>{log}</pre>"
    (found,), _ = read(tmp_path, page(("Gemini Apps", text)))
    assert [m.text for m in found.messages] == [f"why?\n{log}\nThanks", f"See\n\n{log}"]
    assert found.created_at == datetime(2025, 11, 13, 14, 50, 57, tzinfo=UTC)


def test_a_page_cut_short_keeps_what_came_before(tmp_path: Path) -> None:
    content = page(*(("Gemini Apps", f"Prompted number {i}<br>{AT}<br>") for i in range(20)))
    found, report = read(tmp_path, content[: len(content) // 2])
    assert 8 <= len(found) <= 11
    assert not report.whole
    assert "cut short" in report.damages[0]


def test_a_page_cut_anywhere_never_gives_half_an_entry(tmp_path: Path) -> None:
    content = page(*(("Gemini Apps", f"Prompted no. {i}<br>{AT}<br>Answer {i}.") for i in "123"))
    whole = {(m.id, m.text) for found in read(tmp_path, content)[0] for m in found.messages}
    for cut in range(content.index(b"no. 2"), len(content) - len(b"</body></html>"), 7):
        found, report = read(tmp_path, content[:cut])
        assert {(m.id, m.text) for c in found for m in c.messages} <= whole
        assert "cut short" in report.damages[0]


def test_takeout_names_its_files_in_the_users_language(tmp_path: Path) -> None:
    content = zipped(
        {
            "Takeout/マイ アクティビティ/Gemini アプリ/マイアクティビティ.json": dump(
                [entry("Prompted hi")]
            )
        }
    )
    found, _ = read(tmp_path, content)
    assert len(found) == 1


@pytest.mark.parametrize("markup", ["<", "<a ", "<!--", "<p", "&", "<![CDATA[", "<script>"])
def test_no_markup_is_slow(markup: str) -> None:
    started = time.monotonic()
    html_to_text(markup * (1_000_000 // len(markup)))
    assert time.monotonic() - started < 3.0  # a quadratic pass would take minutes


def test_activity_without_gemini_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(BadExport, match="holds YouTube activity but no Gemini prompts"):
        read(tmp_path, page(("YouTube", "Watched x")))


def test_equal_prompts_without_a_date_are_two(tmp_path: Path) -> None:
    cells = (("Gemini", f"go on<br>13 Nonsense 2025, 09:50:57<br>{n}") for n in range(2))
    found, report = read(tmp_path, page(*cells))
    assert [[m.text for m in c.messages] for c in found] == [["go on", "0"], ["go on", "1"]]
    assert report.duplicates == 0
