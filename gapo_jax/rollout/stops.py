"""Stop strings, exact as text: a response is cut before the first one, wherever tokens begin.

The sampler asks between chunks whether a row holds one, so that its slot becomes free; what the row
has drawn beyond is cut off afterwards, by the same rule whoever sampled it.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from transformers import PreTrainedTokenizerFast

from gapo_jax.data.tokenizer import decode_responses
from gapo_jax.types import Rollout


class StopStrings:
    """Strings that end a response. Raises ValueError when there is none, or an empty one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, strings: Sequence[str]) -> None:
        if not strings or not all(strings):
            raise ValueError(f"wanted stop strings, none of them empty, got {list(strings)}")
        self.tokenizer, self.strings = tokenizer, tuple(strings)

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Return whether the text of these tokens holds a stop string."""
        tokens_1R = np.asarray(tokens, np.int32)[None]
        text = decode_responses(self.tokenizer, tokens_1R, np.ones_like(tokens_1R))[0]
        return self.cut(text) != text

    def cut(self, text: str) -> str:
        """Return the text before the first stop string."""
        places = [at for at in map(text.find, self.strings) if at >= 0]
        return text[: min(places)] if places else text

    def held(self, rollout: Rollout) -> Bool[np.ndarray, "B"]:
        """Return which responses hold a stop string, bool [B]."""
        mask_BR = np.asarray(rollout.response_mask_BR)
        tokens_BR = np.asarray(rollout.tokens_BT)[:, -mask_BR.shape[1] :]
        texts = decode_responses(self.tokenizer, tokens_BR, mask_BR)
        return np.array([self.cut(text) != text for text in texts], bool)

    def count(self, tokens: Sequence[int]) -> int:
        """Return how many tokens it takes to complete the first stop string, or all of them."""
        # Further tokens never take a stop string away, so the first prefix is found by halving.
        lengths = range(1, len(tokens) + 1)
        shortest = bisect.bisect_left(lengths, True, key=lambda n: self(tokens[:n]))
        return min(shortest + 1, len(tokens))

    def cut_rollout(self, rollout: Rollout, pad_id: int) -> Rollout:
        """Return a rollout (numpy) that ends each row with the token that completes its first stop
        string. That token stays, with its log-prob: it is what the row was ended by."""
        mask_BR = np.array(rollout.response_mask_BR)
        tokens_BR = np.array(rollout.tokens_BT)[:, -mask_BR.shape[1] :]
        for row, mask_R in enumerate(mask_BR):
            mask_R[self.count(tokens_BR[row, mask_R > 0].tolist()) :] = 0
        width = rollout.tokens_BT.shape[1] - mask_BR.shape[1]
        prompts_BP, prompt_mask_BP = rollout.tokens_BT[:, :width], rollout.mask_BT[:, :width]
        cut: dict[str, Any] = {
            "tokens_BT": np.concatenate([prompts_BP, np.where(mask_BR, tokens_BR, pad_id)], axis=1),
            "mask_BT": np.concatenate([prompt_mask_BP, mask_BR], axis=1),
            "response_mask_BR": mask_BR,
            "logprobs_BR": np.where(mask_BR, rollout.logprobs_BR, 0.0).astype(np.float32),
        }
        return Rollout(**cut)


def stop_strings(tokenizer: PreTrainedTokenizerFast, strings: Sequence[str]) -> StopStrings | None:
    """Return `StopStrings`, or None where there are no strings."""
    return StopStrings(tokenizer, strings) if strings else None
