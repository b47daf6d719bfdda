"""Tiny tokenizers of the families that models have, and chat templates like those of known ones."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen 3: the thought of an answer stands in the last one only, empty where there is none.
QWEN3 = (
    "{%- set ns = namespace(last=messages|length - 1, open=true) %}"
    "{%- for message in messages[::-1] %}{%- if ns.open and message.role == 'user' %}"
    "{%- set ns.open = false %}{%- set ns.last = messages|length - 1 - loop.index0 %}"
    "{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' %}{%- set thought = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last %}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}"
    "{{- content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# Gemma: an answer is stripped and ends with a token that is not the end of a sequence.
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Zephyr: headers are plain text, and one ends in a newline right before the answer.
ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def _fast(backend: Tokenizer, template: str | None, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **names,
    )


def chatml_bpe(template: str = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML: SmolLM2, Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġt", "he", "Ġthe", "us", "er", "user", "ĊĊ", "s"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *words]))}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("u", "s"), ("e", "r"), ("us", "er")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[*merges, ("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<|endoftext|>", "<|im_start|>")]
    )
    backend.add_special_tokens([AddedToken("<|im_end|>", normalized=False)])
    backend.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    return _fast(backend, template, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _pieces() -> list[str]:
    letters = [chr(code) for code in range(33, 127)] + list("éäöü…¶")
    words = ["▁the", "▁The", "The", "▁Hi", "Hi", "▁a", "user", "model", "assist", "ant", "..."]
    return [*letters, "▁", *words]


def gemma_bpe(template: str = GEMMA) -> PreTrainedTokenizerFast:
    """SentencePiece BPE without a leading blank: Gemma. Its marks of turns are no special tokens,
    and its end of a sequence is not what ends an answer."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    letters = [*dict.fromkeys(["\n", *[p for p in _pieces() if len(p) == 1]])]
    merges = [("H", "i"), ("▁", "Hi"), ("▁", "a"), ("\n", "\n")]
    vocab = [*specials, *letters, *(a + b for a, b in merges)]
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocab)}, merges=merges, unk_token="<unk>"
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in specials[:4]])
    backend.add_tokens([AddedToken(name, normalized=False) for name in specials[4:]])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _fast(backend, template, **names)


def llama_bpe(template: str | None = ZEPHYR) -> PreTrainedTokenizerFast:
    """SentencePiece BPE that puts a blank before each text: Llama 2, Zephyr."""
    specials = ["<unk>", "<s>", "</s>"]
    letters = [*dict.fromkeys(["\n", *[p for p in _pieces() if len(p) == 1]])]
    merges = [("H", "i"), ("▁", "Hi"), ("▁", "a")]
    vocab = [*specials, *letters, *(a + b for a, b in merges)]
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocab)}, merges=merges, unk_token="<unk>"
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return _fast(backend, template, **names)


def unigram(template: str | None = None) -> PreTrainedTokenizerFast:
    """Unigram with Metaspace, whose model holds its control tokens as pieces: XLM-R, DeBERTa v3."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    scored = [(name, 0.0) for name in specials]
    scored += [(piece, -float(3 + (len(piece) == 1))) for piece in dict.fromkeys(_pieces())]
    backend = Tokenizer(models.Unigram(scored, unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    names = {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return _fast(backend, template, **names)
