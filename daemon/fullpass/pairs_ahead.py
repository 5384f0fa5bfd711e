"""How many pairs of facts will need a model's word, foreseen from the facts found so far.

Some people say much that is nearly the same, some never do: the pairs that are open among a part
of all facts tell how many there will be among all, since two facts are both in it by chance.
Memory and time are bounded: the first facts stand for the rest, and they are looked at a few times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from daemon.fullpass.forecast import FEW_FACTS, PAIRS_PER_FACT
from daemon.fullpass.questions import MOST_QUESTIONS, open_pairs
from daemon.fullpass.sayings import Mention, Sayings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daemon.fullpass.facts import CheckedFact

_MOST_HELD = 250
"""All of them are compared at once: the loop serves nothing else meanwhile, and jobs beside this
one must not notice."""
_SUPPOSED = 2.0
"""What is supposed counts as much as so many pairs seen (Bayes, with a gamma distribution)."""
_BY_CHANCE = 1.3
"""Of many groups some show fewer facts than is their share: that makes no small groups of them."""
_MORE = 1.15
"""So many times as many facts are worth another look."""


class _Seen(NamedTuple):
    """What the last look found."""

    held: int
    of: float
    """All there would be."""
    different: int
    pairs: int


class PairsAhead:
    """Facts as they come: `add`, then `among` so many."""

    def __init__(self) -> None:
        self._held: list[Mention] = []
        self._windows = 0
        self._seen = _Seen(0, 0.0, 0, 0)

    def add(self, facts: Iterable[CheckedFact]) -> None:
        """Note the facts of one window."""
        self._windows += 1
        for fact in facts:
            if len(self._held) == _MOST_HELD:
                return
            number = len(self._held)
            self._held.append(
                Mention(
                    row=number,
                    source="",
                    category=fact.category,
                    slot=fact.slot,
                    statement=fact.statement,
                    confidence=fact.confidence,
                    place=f"{self._windows}/{fact.message}",
                    position=number,
                    observed=float(number),
                    valid_from=fact.valid_from.toordinal() if fact.valid_from else 0,
                )
            )

    def among(self, facts: float, *, before: float) -> float:
        """Return how many pairs so many different facts hold, without those among the `before`.

        What was asked about those of before takes no time: the ledger has it.
        """
        if facts < FEW_FACTS:
            return 0.0
        held, seen = len(self._held), self._seen
        if held > _MORE * seen.held or not seen.of / _MORE <= facts <= seen.of * _MORE:
            seen = self._seen = self._look(facts)
        # Two facts are both in a part of all with the square of its share.
        supposed = PAIRS_PER_FACT * facts
        of_them_seen = supposed * min(1.0, seen.different / facts) ** 2
        pairs = supposed * (_SUPPOSED + seen.pairs) / (_SUPPOSED + of_them_seen)
        new = 1 - min(1.0, before / facts) ** 2
        return min(float(MOST_QUESTIONS), pairs * new)

    def _look(self, facts: float) -> _Seen:
        known = Sayings()
        for mention in self._held:
            known.add(mention)
        known.unite_certain()
        pairs = open_pairs(known, share=min(1.0, len(known) / facts) ** _BY_CHANCE)
        return _Seen(len(self._held), facts, len(known), len(pairs))
