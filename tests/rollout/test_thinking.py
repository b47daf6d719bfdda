"""A chat template that opens `<think>`: a response cut off inside the block is no answer."""

import numpy as np
import pytest

from gapo_jax import constraints, rng
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.rng import Stream
from gapo_jax.rollout.generate import generate
from gapo_jax.types import Rollout

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
SIZE, WIDTH = 32, 64


def saying(tokenizer, texts):
    """Return a sampler that answers with given texts, in order."""

    def sample(params, tokens_AP, mask_AP, keys_B, temperature):
        count = keys_B.shape[0]
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts[:count]]
        responses_BR = np.array([row + [0] * (SIZE - len(row)) for row in ids], np.int32)
        mask_BR = np.array([[1] * len(row) + [0] * (SIZE - len(row)) for row in ids], np.int32)
        repeats = count // tokens_AP.shape[0]
        return Rollout(
            np.concatenate([np.repeat(tokens_AP, repeats, 0), responses_BR], 1),
            np.concatenate([np.repeat(mask_AP, repeats, 0), mask_BR], 1),
            mask_BR,
            np.zeros((count, SIZE), np.float32),
        )

    return sample


@pytest.mark.parametrize("opened", [True, False])
def test_the_text_begins_with_the_tag_that_the_template_opens(opened):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE + ("<think>\n" if opened else "")
    texts = ["Tea is warm", "one, two</think>Tea", "Tea, please", "<think>so, so"]
    made = generate(
        saying(tokenizer, texts), {}, tokenizer, ["a", "b"],
        rng.row_keys(0, Stream.ROLLOUT, count=4), batch_size=4, width=WIDTH, temperature=1.0,
    )  # fmt: skip
    assert made.texts == [("<think>" if opened else "") + text for text in texts]
    verdicts = [constraints.check(text, ["no_comma"], [{}])[0] for text in made.texts]
    # Cut off before the end of its thinking, the first one says nothing.
    assert verdicts == [not opened, True, False, False]
