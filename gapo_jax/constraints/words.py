"""Words to ask for or to forbid: which words of a text make keywords, and common ones."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")

# Words too common for a keyword: no natural text avoids them.
STOP_WORDS = frozenset(
    """a about above after again against all also although always am among an and another any are
    around as at away back be became because become been before being below between both but by
    came can cannot come could did do does doing done down during each either else enough etc even
    ever every far few first for from further get gets getting give given gives go goes going gone
    got had has have having he her here hers herself him himself his how however i if in into is
    it its itself just keep kind know last least less let like likely lot made make makes making
    many may maybe me might mine more most much must my myself near need needs neither never next
    no none nor not nothing now of off often on once one only onto or other others our ours out
    over own part per perhaps put quite rather really said same say says see seem seems several
    shall she should since so some something sometimes soon still such sure take takes than that
    the their theirs them themselves then there these they thing things this those though through
    thus to together too toward towards two under until up upon us use used uses using usually
    various very was way ways we well went were what when where whether which while who whole whom
    whose why will with within without would yet you your yours yourself three four five second
    don't can't won't it's you're that's i'm we're they're isn't doesn't aren't""".split()
)

# Nouns and adjectives that fit many tasks, used where no word of the task is known.
COMMON_WORDS: tuple[str, ...] = tuple(
    """simple fresh quiet bright gentle careful steady clear early modern natural popular local
    family morning evening season weather garden kitchen journey story memory friend market
    water light color sound paper window bridge travel music colour habit moment effort reason
    balance detail change choice energy health history future custom practice result source
    strength surface theory value warmth wonder village winter summer river mountain ocean
    forest silver golden honest curious ancient distant familiar""".split()
)


@functools.lru_cache(maxsize=8192)
def content_words(text: str) -> tuple[str, ...]:
    """Return the words of a text that make good keywords, lower case, in order, each once.

    Four to fourteen ASCII letters and not a stop word.
    """
    # A dictionary keeps the order of the text, so that draws are reproducible.
    words: dict[str, None] = {}
    for match in _WORD.finditer(text):
        word = match.group().lower()
        if 4 <= len(word) <= 14 and word.isalpha() and word not in STOP_WORDS:
            words.setdefault(word)
    return tuple(words)


def absent_words(response: str, words: Sequence[str]) -> list[str]:
    """Return the candidates that do not occur in the response, not even inside a word.

    Where all of `words` occur in it, the result comes from `COMMON_WORDS`.
    """
    lowered = response.lower()

    def usable(candidates: Sequence[str]) -> list[str]:
        return [
            word
            for word in dict.fromkeys(candidate.strip().lower() for candidate in candidates)
            if word.isascii() and word.isalpha() and len(word) > 2 and word not in lowered
        ]

    return usable(words) or usable(COMMON_WORDS)
