"""The names of reward sources, as `config.reward.sources` has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from gapo_jax.section import nearest

BUILT_IN = ("verifier", "discriminator")
MODEL = "model:"
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Source(NamedTuple):
    """One reward source.

    Attributes:
        name: what its metrics are called; no two sources of a run share it.
        kind: what gives the scores.
        target: where it is: of a model its path or hub id, of a function FILE.py:NAME or
            MODULE:NAME.
    """

    name: str
    kind: Literal["verifier", "discriminator", "model", "function"]
    target: str


def parse_sources(texts: Sequence[str]) -> tuple[Source, ...]:
    """Return the sources of a run in their order.

    Raises:
        ValueError: a text that names no source, or one that is named twice.
    """
    sources: list[Source] = []
    for text in texts:
        if texts.count(text) > 1:
            raise ValueError(f"config.reward.sources names {text!r} twice; give it a weight")
        name, kind, target = _parse(text)
        taken = [source.name for source in sources] + list(BUILT_IN if kind == "function" else ())
        number = 2
        unique = name
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        sources.append(Source(unique, kind, target))
    return tuple(sources)


def _parse(text: str) -> Source:
    if text in BUILT_IN:
        return Source(text, text, "")  # type: ignore[arg-type]
    if text.startswith(MODEL):
        target = text.removeprefix(MODEL)
        if not target:
            raise ValueError(
                "config.reward.sources has 'model:' without a model: wanted a folder or hub id "
                "behind it, as in 'model:Skywork/Skywork-Reward-V2-Qwen3-0.6B'"
            )
        return Source(_plain(Path(target).name or target), "model", target)
    where, _, function = text.rpartition(":")
    is_file = where.endswith(".py")
    if not _DOTTED.fullmatch(function) or not (is_file or _DOTTED.fullmatch(where)):
        forms = [*BUILT_IN, "model:PATH", "FILE.py:FUNCTION", "PACKAGE.MODULE:FUNCTION"]
        raise ValueError(f"config.reward.sources cannot be {text!r}{nearest(text, forms)}")
    return Source(_plain(function), "function", text)


def _plain(text: str) -> str:
    """Return a text without what would make a path of a metric's name."""
    return re.sub(r"[^\w.-]+", "_", text)
