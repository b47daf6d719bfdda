"""The same weights and the same work in plain torch and transformers.

No trainer of another library is run: an update here is the forward, backward and AdamW step that
such a trainer makes of the same batch, without its overhead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from gapo_jax.cli.benchmarks.common import LEARNING_RATE, TEMPERATURE
from gapo_jax.config import Config
from gapo_jax.methods import method_of
from gapo_jax.models import Decoder, save_hf


class TorchReference:
    """A generator in transformers."""

    def __init__(self, decoder: Decoder, params: Any, dtype: str):
        """Write the weights as an HF folder and load that."""
        import torch
        import transformers

        self.torch = torch
        with tempfile.TemporaryDirectory() as folder:
            save_hf(decoder, params, folder)
            self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype)
            )

    def tensors(self, *arrays: Any) -> list[Any]:
        """Return int64 tensors of integer arrays."""
        return [self.torch.from_numpy(np.array(array)).long() for array in arrays]

    def sampler(self, tokens_AP, mask_AP, samples: int, new_tokens: int) -> Callable[[], Any]:
        """Return a call of `generate` at the same temperature, of exactly `new_tokens` tokens."""
        tokens, mask = self.tensors(tokens_AP, mask_AP)
        self.model.eval()
        return lambda: self.model.generate(
            tokens, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_k=0,
            top_p=1.0, num_return_sequences=samples, max_new_tokens=new_tokens,
            min_new_tokens=new_tokens, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip

    def hidden(self, tokens, mask, model: Any = None) -> Any:
        """Return the final hidden states with our positions."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        trunk = (model or self.model).model
        out = trunk(tokens, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.last_hidden_state

    def logprobs(self, tokens, mask, length: int, temperature: float, model: Any = None) -> Any:
        """Return the distributions [B, R, V] and the log-probs [B, R] of the last tokens."""
        model = model or self.model
        hidden = self.hidden(tokens, mask, model)[:, -length - 1 : -1]
        every = (model.lm_head(hidden).float() / temperature).log_softmax(-1)
        return every, every.gather(-1, tokens[:, -length:, None])[..., 0]

    def forward(self, tokens_BT, mask_BT) -> Callable[[], Any]:
        """Return a forward pass without gradients."""
        tokens, mask = self.tensors(tokens_BT, mask_BT)
        return self.torch.no_grad()(lambda: self.hidden(tokens, mask))

    def score(self, experience) -> Callable[[], Any]:
        """Return log-probs of policy and reference, two networks, and values from the latter."""
        tokens, mask = self.tensors(experience.tokens_BT, experience.mask_BT)
        length = experience.response_mask_BR.shape[1]

        def call() -> None:
            for _ in range(2):
                self.logprobs(tokens, mask, length, TEMPERATURE)

        return self.torch.no_grad()(call)

    def optimizer(self, first: int, train_embeddings: bool) -> tuple[Any, list[Any]]:
        """Make the parameters of the upper layers trainable; return AdamW and the parameters."""
        model = self.model.train().requires_grad_(False)
        for part in [model.model.layers[first:], model.model.norm] + (
            [model.model.embed_tokens] * train_embeddings
        ):
            part.requires_grad_(True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return self.torch.optim.AdamW(parameters, lr=LEARNING_RATE), parameters

    def policy_update(self, experience, first: int, train_embeddings: bool, config: Config):
        """Return an update of the same parameters by the same clipped loss and AdamW."""
        torch = self.torch
        tokens, mask = self.tensors(experience.tokens_BT, experience.mask_BT)
        length = experience.response_mask_BR.shape[1]
        old, advantages = (
            torch.from_numpy(np.array(x))
            for x in (experience.old_logprobs_BR, experience.advantages_BR)
        )
        optimizer, parameters = self.optimizer(first, train_embeddings)

        def update() -> None:
            every, chosen = self.logprobs(tokens, mask, length, TEMPERATURE)
            with torch.no_grad():
                -(every.exp() * every).sum(-1).mean()  # the entropy, a metric of ours too
            ratio = (chosen - old).exp()
            clipped = ratio.clamp(1 - config.ppo.clip_low, 1 + config.ppo.clip_high)
            loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
            self.step(loss, optimizer, parameters, config.ppo.optim.clip_norm)

        return update

    def step(self, loss: Any, optimizer: Any, parameters: list[Any], clip: float) -> None:
        """Make one update."""
        optimizer.zero_grad()
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()

    def offline_update(self, rollout, first: int, config: Config) -> Callable[[], Any]:
        """Return an update by SFT or DPO (with a second network as reference) on the same rows."""
        import copy

        torch = self.torch
        tokens, mask = self.tensors(rollout.tokens_BT, rollout.mask_BT)
        length = rollout.response_mask_BR.shape[1]
        frozen = copy.deepcopy(self.model).eval() if method_of(config).reference else None
        optimizer, parameters = self.optimizer(first, False)

        def update() -> None:
            _, chosen = self.logprobs(tokens, mask, length, 1.0)
            if frozen is None:
                loss = -chosen.mean()
            else:
                with torch.no_grad():
                    _, start = self.logprobs(tokens, mask, length, 1.0, frozen)
                margin = (chosen - start).sum(-1)
                logits = config.dpo.beta * (margin[::2] - margin[1::2])
                loss = -torch.nn.functional.logsigmoid(logits).mean()
            self.step(loss, optimizer, parameters, config.offline.optim.clip_norm)

        return update


class TorchDiscriminator:
    """The encoder of a discriminator in transformers, with mean pooling and a linear head."""

    def __init__(self, discriminator: Any, params: Any, config: Config):
        """Write the weights as an HF folder and load the encoder from it."""
        import torch
        import transformers

        self.torch, self.optim = torch, config.discriminator.optim
        with tempfile.TemporaryDirectory() as folder:
            save_hf(discriminator, params, folder)
            self.encoder = transformers.AutoModel.from_pretrained(folder)
        self.head = torch.nn.Linear(self.encoder.config.hidden_size, 1)

    def logits(self, tokens: Any) -> Any:
        """Return the logits [B] of texts without padding."""
        return self.head(self.encoder(tokens).last_hidden_state.mean(1))[:, 0]

    def score(self, tokens_BT: Any) -> Callable[[], Any]:
        """Return a forward pass without gradients."""
        tokens = self.torch.from_numpy(np.array(tokens_BT)).long()
        return self.torch.no_grad()(lambda: self.logits(tokens))

    def update(self, tokens_BT: Any, targets_B: Any) -> Callable[[], Any]:
        """Return an update by cross-entropy and AdamW of all but the word embeddings."""
        torch = self.torch
        tokens = torch.from_numpy(np.array(tokens_BT)).long()
        targets = torch.from_numpy(np.array(targets_B)).float()
        self.encoder.eval().embeddings.word_embeddings.requires_grad_(False)
        parameters = [p for p in self.encoder.parameters() if p.requires_grad]
        parameters += list(self.head.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=self.optim.learning_rate)

        def update() -> None:
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                self.logits(tokens), targets
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.optim.clip_norm)
            optimizer.step()

        return update
