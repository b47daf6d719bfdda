"""Two small tokenizers built in code, for runs and tests that download nothing.

Generator and discriminator get different ones on purpose: text has to be decoded and tokenised
again on its way between them, in the tiny configuration as in the real one.
"""

from __future__ import annotations

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gapo_jax.data.discriminator_text import CUT, NEWLINE

_CHAT = (
    "{% for message in messages %}{{ '<s>' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '>' }}{% endif %}"
)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per printable ASCII character; others become "?"."""
    specials = ["<pad>", "<s>", "</s>"]
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    vocab = {token: index for index, token in enumerate([*specials, *characters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="?", fuse_unk=False))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT,
    )


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """Return an uncased BERT-type tokenizer whose pieces are single characters."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *(f"##{c}" for c in letters), *string.punctuation, NEWLINE, CUT]
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
