"""Frozen reward models score what transformers scores, each with its own tokenizer and template."""

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

from gapo_jax.config import Config
from gapo_jax.data.tiny_tokenizer import character_tokenizer, wordpiece_tokenizer
from gapo_jax.sharding import ONE_DEVICE
from gapo_jax.train.online.reward_models import load_reward_source
from gapo_jax.train.online.reward_sources import start_functions
from gapo_jax.train.runtime import Processes
from gapo_jax.types import PromptRow

PROMPTS = ["Name a colour.", "Write two\nlines, please.", "  Blanks around  ", "What is [SEP]?"]
RESPONSES = ["Blue.", "One.\nTwo, at some length, so that batches differ.", " x ", "A token </s>."]


def _small(config, labels=1):
    return config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=128, num_labels=labels, initializer_range=0.4, vocab_size=128,
        pad_token_id=0,
    )  # fmt: skip


def _save(model, tokenizer, folder):
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = wordpiece_tokenizer()
    frame = [(f"[{name}]", tokenizer.convert_tokens_to_ids(f"[{name}]")) for name in ("SEP", "CLS")]
    tokenizer.backend_tokenizer.post_processor = processors.BertProcessing(*frame)
    model = transformers.BertForSequenceClassification(_small(transformers.BertConfig))
    folder = tmp_path_factory.mktemp("models") / "encoder"
    return folder, *_save(model, tokenizer, folder)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    torch.manual_seed(1)
    model = transformers.LlamaForSequenceClassification(_small(transformers.LlamaConfig))
    folder = tmp_path_factory.mktemp("models") / "decoder"
    return folder, *_save(model, character_tokenizer(), folder)


def _source(folder, batch_size=3):
    config = Config(method="grpo")
    config.discriminator.batch_size = batch_size
    return load_reward_source(config, str(folder), ONE_DEVICE)


def _rows(prompts):
    return [PromptRow(str(i), prompt, prompt, ()) for i, prompt in enumerate(prompts)]


def _torch_logits(model, ids, segments=None):
    extra = {} if segments is None else {"token_type_ids": torch.tensor([segments])}
    with torch.no_grad():
        return float(model(torch.tensor([ids]), **extra).logits[0, 0])


def test_an_encoder_reads_a_pair_as_transformers_does(encoder):
    folder, model, tokenizer = encoder
    prompts, responses = PROMPTS[:3], RESPONSES[:3]
    want = []
    for prompt, response in zip(prompts, responses, strict=True):
        pair = tokenizer(prompt, response, return_token_type_ids=True)
        want.append(_torch_logits(model, pair["input_ids"], pair["token_type_ids"]))
    found = _source(folder, batch_size=2).logits(_rows(prompts), responses)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    assert np.ptp(want) > 0.1


def test_a_decoder_reads_its_own_chat_template(decoder):
    """What transformers scores of the rendered dialogue, up to its last token; a control token in
    the text is text."""
    folder, model, tokenizer = decoder
    want = []
    for prompt, response in zip(PROMPTS[:3], RESPONSES[:3], strict=True):
        turns = [("user", prompt), ("assistant", response)]
        messages = [{"role": role, "content": text} for role, text in turns]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        want.append(_torch_logits(model, ids))
    source = _source(folder)
    found = source.logits(_rows(PROMPTS), RESPONSES)
    np.testing.assert_allclose(found[:3], want, rtol=1e-4, atol=1e-5)
    assert np.ptp(want) > 0.1
    ids, _ = source._encode(_rows(PROMPTS)[3], RESPONSES[3])
    assert tokenizer.eos_token_id not in ids and tokenizer.decode(ids).endswith("A token </s>.\n")


def test_a_dialogue_is_rendered_with_all_its_turns(decoder):
    folder, model, tokenizer = decoder
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Bye?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    row = PromptRow("1", "one text", "one text", (), turns=tuple(messages))
    ids = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": "Bye."}], return_dict=False
    )
    found = _source(folder).logits([row], ["Bye."])
    np.testing.assert_allclose(found, [_torch_logits(model, ids)], rtol=1e-4, atol=1e-5)


def test_a_text_beyond_the_positions_keeps_its_end(decoder):
    folder, model, tokenizer = decoder
    long = "a long prompt " * 20
    messages = [{"role": "user", "content": long}, {"role": "assistant", "content": "The end."}]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    found = _source(folder).logits(_rows([long]), ["The end."])
    np.testing.assert_allclose(found, [_torch_logits(model, ids[-128:])], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [2, 5])
def test_a_classifier_of_several_labels_is_no_reward_model(tmp_path, labels):
    model = transformers.BertForSequenceClassification(_small(transformers.BertConfig, labels))
    _save(model, wordpiece_tokenizer(), tmp_path)
    with pytest.raises(ValueError, match="head"):
        _source(tmp_path)


def test_a_model_that_is_not_there_is_named_before_anything_is_loaded(tmp_path):
    config = Config(method="grpo")
    config.reward.sources = (f"model:{tmp_path / 'nothing'}",)
    with pytest.raises((FileNotFoundError, ValueError), match="nothing"):
        start_functions(config, Processes(), None)
