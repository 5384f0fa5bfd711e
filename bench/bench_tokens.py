"""How close the token estimate comes to a real tokenizer, and how fast it is.

    python bench/bench_tokens.py --tokenizer tokenizer.json --text notes/*.txt code/*.py

The truth is the tokenizer's count × --factor: newer models bill about 1.3 × what the last published
tokenizer counts. Needs the `tokenizers` package, which fullpass itself does not. Texts are cut into
pieces of chunk size and judged piece by piece; a row of the table is a folder of texts.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from daemon.fullpass.tokens import estimate_tokens  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS = 7
LOWEST, HIGHEST = 0.90, 1.30
SLOWEST_ASCII_MB, SLOWEST_OTHER_MB = 100.0, 30.0
NOISE = 0.5
SPEED_CHARACTERS = 8_000


def main() -> int:
    options = _options()
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        print("bench_tokens: pip install tokenizers, in this or another venv", file=sys.stderr)
        return 2
    tokenizer = library.Tokenizer.from_file(str(options.tokenizer))

    def truth(text: str) -> float:
        return float(len(tokenizer.encode(text, add_special_tokens=False).ids) * options.factor)

    rows: dict[str, list[float]] = defaultdict(list)
    texts: list[str] = []
    for path in options.text:
        text = path.read_text(encoding="utf-8", errors="replace")
        for piece in _pieces(text, options.characters):
            rows[path.resolve().parent.name].append(estimate_tokens(piece) / truth(piece))
            texts.append(piece)
    if not texts:
        print("bench_tokens: no text of 300 characters or more", file=sys.stderr)
        return 2
    _print_table(rows)
    ratios = [ratio for row in rows.values() for ratio in row]
    speeds, noise = _speeds(texts)
    ok = [
        _say("tokens_lowest_ratio", min(ratios), LOWEST, good=min(ratios) >= LOWEST),
        _say("tokens_highest_ratio", max(ratios), HIGHEST, good=max(ratios) <= HIGHEST),
        *(_say(name, mb, limit, good=mb >= limit) for name, mb, limit in speeds),
        _say("control_spread", noise, NOISE, good=noise <= NOISE),
    ]
    if noise > NOISE and all(ok[:2]):
        return 3
    return 0 if all(ok) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    own = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("daemon/**/*.py")]
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--text", type=Path, nargs="+", default=own, help="UTF-8 texts")
    parser.add_argument("--factor", type=float, default=1.3)
    parser.add_argument("--characters", type=int, default=6_000, help="length of a piece")
    return parser.parse_args()


def _pieces(text: str, characters: int) -> Iterator[str]:
    for start in range(0, len(text), characters):
        piece = text[start : start + characters]
        if len(piece) >= 300:
            yield piece


def _print_table(rows: dict[str, list[float]]) -> None:
    print(f"{'texts':<20} {'pieces':>6} {'lowest':>7} {'median':>7} {'highest':>7} {'outside':>7}")
    for name, ratios in sorted(rows.items()):
        outside = sum(not LOWEST <= ratio <= HIGHEST for ratio in ratios)
        print(
            f"{name[:20]:<20} {len(ratios):>6} {min(ratios):>7.2f} "
            f"{statistics.median(ratios):>7.2f} {max(ratios):>7.2f} {outside:>7}"
        )


def _speeds(texts: list[str]) -> tuple[list[tuple[str, float, float]], float]:
    """Time chunk-sized texts, interleaved with a control; return how much that varied too."""
    kinds = [
        ("ascii_mb_per_second", SLOWEST_ASCII_MB, "".join(t for t in texts if t.isascii())),
        ("other_mb_per_second", SLOWEST_OTHER_MB, "".join(t for t in texts if not t.isascii())),
    ]
    samples = [
        (name, limit, list(_pieces(text[:2_000_000], SPEED_CHARACTERS)))
        for name, limit, text in kinds
    ]
    samples = [sample for sample in samples if sample[2]]
    best: dict[str, float] = {}
    control: list[float] = []
    for _ in range(ROUNDS):
        for name, _, pieces in samples:
            best[name] = max(best.get(name, 0.0), _mb_per_second(estimate_tokens, pieces))
            control.append(_mb_per_second(_control, samples[0][2]))
    spread = (max(control) - statistics.median(control)) / max(control)
    return [(name, best[name], limit) for name, limit, _ in samples], spread


def _control(text: str) -> int:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[0]


def _mb_per_second(work: Callable[[str], int], pieces: list[str]) -> float:
    size = sum(len(piece.encode("utf-8", "replace")) for piece in pieces)
    repeats = max(1, 2_000_000 // size)
    start = perf_counter()
    for _ in range(repeats):
        for piece in pieces:
            work(piece)
    return size * repeats / (perf_counter() - start) / 1e6


def _say(metric: str, value: float, limit: float, *, good: bool) -> bool:
    print(json.dumps({"metric": metric, "value": round(value, 3), "limit": limit, "ok": good}))
    return good


if __name__ == "__main__":
    sys.exit(main())
