"""Encode text so that nothing a person or a model wrote becomes a control token.

A tokenizer reads `<|im_end|>` or `[SEP]` in a text as the token of that name. A prompt could end
its own turn that way, and a response could talk to the discriminator. `TextEncoder` encodes with a
copy of the tokenizer in which each control token has a secret alias instead of its name. Names in a
text are then ordinary text, and only `markup`, which writes the aliases, makes control tokens.
Everything else is unchanged, so texts without such names get the same ids as from the tokenizer
itself.
"""

from __future__ import annotations

import json
import re
import secrets
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tokenizers

from gapo_jax.data.chat_template import literal_text, template_of
from gapo_jax.records import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Written by models themselves, and a token of its own in what they were trained on.
_REASONING = ("<think>", "</think>")
_ENCODERS: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], TextEncoder]] = (
    weakref.WeakKeyDictionary()
)
_LIMITS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


class TextEncoder:
    """Encodes plain texts, and rendered texts in which control tokens are written as aliases.

    Attributes:
        names: control token -> id. Control tokens are all special tokens of the tokenizer and the
            added tokens that its chat template writes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend: Any = tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder()
        written = literal_text(template_of(tokenizer) or "")
        names = {t.content: i for i, t in added.items() if t.special or t.content in written}
        special: Any = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        self.names: dict[str, int] = names | dict(special)
        # Unguessable, so that no text can hold an alias; of one length, so that none holds another.
        secret = secrets.token_hex(16)
        self._aliases = {name: f"{secret}a{i:06d}" for i, name in enumerate(self.names)}
        self._marks = {name: f"{secret}m{i:06d}" for i, name in enumerate(self.names)}
        self._named = {alias: name for name, alias in self._aliases.items()}
        self._meant = {mark: name for name, mark in self._marks.items()}
        longest_first = sorted(self.names, key=len, reverse=True)
        self._name = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._alias = re.compile(f"{secret}a[0-9]{{6}}")
        self._mark = re.compile(f"{secret}m[0-9]{{6}}")
        self._backend = tokenizers.Tokenizer.from_str(self._renamed(json.loads(backend.to_str())))
        for name, alias in self._aliases.items():
            if self._backend.token_to_id(alias) != self.names[name]:
                raise ValueError(
                    f"wanted {name!r} as token {self.names[name]} of a copy of the tokenizer, got "
                    f"{self._backend.token_to_id(alias)}: its tokenizer.json contradicts itself"
                )
        self.limit = _LIMITS.get(tokenizer)

    def _renamed(self, record: JsonObject) -> str:
        """Return a tokenizer.json in which control tokens have their aliases as names."""
        aliases, model = self._aliases, record["model"]
        for token in record["added_tokens"]:
            token["content"] = aliases.get(token["content"], token["content"])
        # Some models, Unigram above all, find the names of control tokens by themselves.
        if isinstance(model["vocab"], dict):
            model["vocab"] = {aliases.get(name, name): i for name, i in model["vocab"].items()}
        else:
            model["vocab"] = [[aliases.get(name, name), *rest] for name, *rest in model["vocab"]]
        if model.get("unk_token") in aliases:
            model["unk_token"] = aliases[model["unk_token"]]
        if merges := model.get("merges"):
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
            model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & aliases.keys()]
        record |= {"post_processor": None, "truncation": None, "padding": None}
        return json.dumps(record)

    def mark(self, content: str, *, answer: bool = False) -> str:
        """Replace each name of a control token in a content by a mark, for use in a chat template.

        In an `answer` the tags around a model's reasoning are kept: they are tokens that it writes
        itself.
        """

        def replace(match: re.Match[str]) -> str:
            name = match.group()
            return name if answer and name in _REASONING else self._marks[name]

        return self._name.sub(replace, content)

    def markup(self, rendered: str) -> str:
        """Write control tokens of rendered text as aliases, and restore what `mark` replaced.

        The names that are left in the rendered text come from the template.
        """
        aliased = self._name.sub(lambda match: self._aliases[match.group()], rendered)
        return self._mark.sub(lambda match: self._meant[match.group()], aliased)

    def alias(self, name: str) -> str:
        """Return the alias of a control token, for markup that no template writes."""
        return self._aliases[name]

    def shown(self, text: str) -> str:
        """Return a text of `markup` with the names of its control tokens."""
        return self._alias.sub(lambda match: self._named[match.group()], text)

    def without_control(self, text: str) -> str:
        """Blank out the control tokens of a text of `markup`, for searches in its contents."""
        return self._alias.sub(lambda match: "\0" * len(match.group()), text)

    def first_control(self, text: str) -> re.Match[str] | None:
        """Find the first control token in a text of `markup`."""
        return self._alias.search(text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of plain texts or of texts of `markup`, without tokens around them.

        Raises:
            ValueError: a text gives an id that the model has no embedding for; has the text.
        """
        rows = [e.ids for e in self._backend.encode_batch(list(texts), add_special_tokens=False)]
        if self.limit is not None:
            for text, row in zip(texts, rows, strict=True):
                if row and max(row) >= self.limit:
                    raise ValueError(
                        f"wanted token ids below the model's vocabulary of {self.limit}, got "
                        f"{max(row)} from {self.shown(text)[:80]!r}: leave that text out"
                    )
        return rows

    def encode_after(self, before: str, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts as they follow `before`.

        Some tokenizers begin every text with a blank, which is wrong after a prompt. If tokens
        would join across the boundary, the text is encoded alone: a sampler has read `before` by
        then.
        """
        (head,) = self.encode([before])
        rows = self.encode([before + text for text in texts])
        alone = [text for text, row in zip(texts, rows) if row[: len(head)] != head]
        apart = iter(self.encode(alone))
        return [row[len(head) :] if row[: len(head)] == head else next(apart) for row in rows]


def text_encoder(tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
    """Return the encoder of a tokenizer; cached until the tokenizer changes."""
    state = (len(tokenizer), template_of(tokenizer), tokenizer.eos_token, _LIMITS.get(tokenizer))
    kept = _ENCODERS.get(tokenizer)
    if kept is None or kept[0] != state:
        kept = state, TextEncoder(tokenizer)
        _ENCODERS[tokenizer] = kept
    return kept[1]


def limit_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Make encoding refuse a text that gives an id of `vocab_size` or above."""
    _LIMITS[tokenizer] = vocab_size
