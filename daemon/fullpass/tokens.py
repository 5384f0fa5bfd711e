"""How many tokens a text is, estimated without a tokenizer."""

from __future__ import annotations

_DIGITS = b"0123456789"
_SPACE = b" \t\r\n"
_PUNCTUATION = bytes(b for b in range(33, 127) if not chr(b).isalnum())
_CONTINUATION = bytes(range(0x80, 0xC0))
_TWO = bytes(range(0xC0, 0xE0))
_THREE = bytes(range(0xE0, 0xF0))
_FOUR = bytes(range(0xF0, 0xF8))


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text from its mix of letters, digits, marks and scripts.

    Counted on UTF-8 bytes with C-speed translations, so that it costs next to nothing a chunk.
    """
    data = text.encode("utf-8", "replace")
    size = len(data)

    def count(kind: bytes) -> int:
        return size - len(data.translate(None, kind))

    digits, space, punctuation = count(_DIGITS), count(_SPACE), count(_PUNCTUATION)
    two = three = four = continuation = 0
    if not text.isascii():
        two, three, four, continuation = (
            count(_TWO),
            count(_THREE),
            count(_FOUR),
            count(_CONTINUATION),
        )
    letters = size - digits - space - punctuation - two - three - four - continuation
    old = (
        0.19 * letters
        + 0.10 * space
        + 0.45 * digits
        + 0.55 * punctuation
        + 0.42 * two
        + 0.95 * three
        + 2.2 * four
    )
    return max(1, round(old * 1.3))
