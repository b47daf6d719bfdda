"""Build small tokenizers in code, for runs and tests that download nothing.

Generator and discriminator get different tokenizers on purpose: as with real models, text has to be
decoded and tokenised again on its way from one to the other.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gapo_jax import constraints
from gapo_jax.data.discriminator_text import CUT, NEWLINE
from gapo_jax.data.prompts import make_prompts
from gapo_jax.data.tasks import tasks
from gapo_jax.rng import Stream, stream

_CHAT = (
    "{% for message in messages %}{{ '<s>' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '>' }}{% endif %}"
)


_SPECIALS = ["<pad>", "<s>", "</s>"]
_CHARACTERS = ["\n", *(chr(code) for code in range(32, 127))]
_SHAPES = "{}, ", "<<{}>> ", "[{}] ", "*{}* ", "P.S. {} "
_SHAPED = (
    "tea sun bread river morning garden music winter chair paper "
    "light stone green house water song early quiet slow warm"
).split()


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per printable ASCII character; others become "?"."""
    vocab = {token: index for index, token in enumerate([*_SPECIALS, *_CHARACTERS])}
    return _generator_tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="?", fuse_unk=False))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens make random text obey a constraint now and then.

    It has a token for each printable ASCII character, for each word of our training prompts, and
    for 20 words in several shapes: with a comma, in title brackets, as a placeholder, highlighted,
    behind a postscript mark.
    """
    # With a leading blank, so that a word stays one token behind any other.
    pieces = [" " + shape.format(word) for shape in _SHAPES for word in _SHAPED]
    pieces += sorted(set(re.findall(r" [A-Za-z]{2,}", _prompts())))
    # Equal scores, so that a text is split into as few tokens as possible.
    scored = [(token, 0.0) for token in _SPECIALS]
    scored += [(token, -10.0) for token in [*_CHARACTERS, *pieces]]
    unknown = len(_SPECIALS) + _CHARACTERS.index("?")
    return _generator_tokenizer(models.Unigram(scored, unk_id=unknown))


def _generator_tokenizer(model: models.Model) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT,
    )


@functools.cache
def _prompts() -> str:
    """Return 500 of our training prompts, each on a line."""
    rng = stream(0, Stream.TOKENIZER_WORDS)
    rows = make_prompts(tasks("train"), constraints.types("ifeval"), 500, rng)
    return "\n".join(row.prompt for row in rows)


def known_words() -> list[str]:
    """Return the words of `word_tokenizer` in lower case."""
    return sorted({*re.findall(r"[a-z]{2,}", _prompts().lower()), *_SHAPED})


def wordpiece_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return an uncased BERT-type tokenizer whose pieces are single characters and `words`."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *(f"##{c}" for c in letters), *string.punctuation, NEWLINE, CUT, *words]
    vocab = {token: index for index, token in enumerate([*specials, *pieces])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=200))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
