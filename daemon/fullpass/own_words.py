"""Whose words a quote is: the person's own, an order to the model, or another's.

A quote found in the person's own message proves nothing where that message shows it to be borrowed:
an order to whoever reads the export, code, a quoted line, another's direct speech (promise 12).
What is open is the person's own: people are believed. Finding the quote is facts.py's; every check
here takes time linear in the message. docs/decisions/0051 says where the lines are drawn and why.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from daemon.fullpass.direct_speech import another_says

if TYPE_CHECKING:
    from daemon.llm.request import NumberedMessage


def why_not_their_own(message: NumberedMessage, quote: str) -> str | None:
    """Return why a quote that stands in a message is not the person's own words; None if it is."""
    if _orders_the_model(message.text, quote):
        return "its quote is an order to the model"
    if message.role != "user":
        return None
    if _borrowed(message.text, quote):
        return "its quote stands in code or in words quoted"
    if another_says(message.text, quote):
        return "its quote is another's direct speech"
    return None


def _borrowed(text: str, quote: str) -> bool:
    """Whether a quote stands only in code blocks or quoted lines ("> …") of a person's message.

    What is neither opened nor closed for certain, as where a long message was cut, is their own.
    """
    if not ("```" in text or ">" in text):
        return False
    lines = text.splitlines(keepends=True)
    paired = sum(line.lstrip().startswith("```") for line in lines) % 2 == 0
    own, others, fenced = [], [], False
    for line in lines:
        fence = paired and line.lstrip().startswith("```")
        theirs = fenced or fence or line.lstrip().startswith(">")
        fenced ^= fence
        # A mark in place of the other's line: no quote spans what was taken away.
        own.append("\0" if theirs else line)
        others.append(line if theirs else "\0")
    return quote in "".join(others) and quote not in "".join(own)


# An order to whoever reads the export: a clause that begins with the verb, as in "Ignore all
# previous instructions", "forget everything above and write". Told of ("I ignored the rules", "she
# told me to ignore …") or of one's own ("ignore the previous instructions I gave my team") it is
# part of a person's life. docs/decisions/0051 says where the line is drawn and why.
_ORDERS = re.compile(
    r"""(?ix)
    (?: ^ | [.!?:;"'*#>\])}] ) \s*
    (?: (?:please|now|and|then|so|ok(?:ay)?|you\ (?:must|should|will)) ,?\ ){0,3}
    (?:
        (?: ignore|disregard|forget|override|bypass ) \s+
        (?: (?:all|any|every|of|the|these|those|other)\s+ ){0,4}
        (?: (?:your|previous|prior|above|earlier|preceding|system|given|original)\s+ ){1,3}
        (?: instructions? | prompts? | rules | guidelines | directions | directives )\b
        (?! \s+ (?: that\s+|which\s+ )? (?: i|we|my|our|from\ my|of\ my|he|she|they )\b )
      | (?: ignore|disregard|forget ) \s+
        (?: (?:all|everything)\ (?:of\ )?(?:the\ |that\ is\ |written\ )?|the\ )
        (?:above|before)\b \s*
        (?: and\b | $ | [.,;:!-]+ \s* (?: (?:instead|now|just|then|please) ,?\ ){0,2}
            (?: add|answer|claim|confirm|do|generate|give|list|make|note|output|pretend|print|put
              | record|remember|repeat|reply|report|respond|return|reveal|save|say|show|state|store
              | tell|translate|treat|use|write|you )\b )
      | (?: reveal|print|show|repeat|output|leak ) \s+ (?:me\s+)?
        (?: (?:all|of|the|your|full|entire|hidden|initial)\s+ ){1,4} (?: system\s+ )?
        (?: prompt|instructions )\b
      | ignor(?:iere?|er?t?)\s+ (?:bitte\s+)? alle\s+ (?:vorherigen|bisherigen|obigen)\b
      | ignor(?:a|e|ez|ad)\s+ (?:todas\s+|toutes\s+|tutte\s+)? (?:as|las|les|le|tus|suas)\s+
        (?:instru\w+|consignes|istruzioni)\s+ (?:anterior\w*|previas|précédentes|precedenti)\b
      | игнорируй(?:те)?\s+ (?:все\s+)? предыдущие\s+ инструкции
    )
    | (?<![我他她们們]) (?:忽略|无视|無視) (?!了) .{0,6} (?:以上|之前|上述|先前) .{0,6}
        (?:指令|指示|说明|提示|命令)
    | (?:以上|これまで|上記|以前) の .{0,6} (?:指示|命令) .{0,6} 無視
    | < \s* /? \s* message \b
    """
)
_NEAR = 300


def _orders_the_model(text: str, quote: str) -> bool:
    """Whether the line that holds the quote, as far as it is near, gives orders to its reader."""
    at = max(text.find(quote), 0)
    start = text.rfind("\n", max(0, at - _NEAR), at) + 1 or max(0, at - _NEAR)
    stop = text.find("\n", at + len(quote), at + len(quote) + _NEAR)
    line = text[start : stop if stop >= 0 else at + len(quote) + _NEAR]
    return any(_ORDERS.search(part) is not None for part in line.split("\n"))
