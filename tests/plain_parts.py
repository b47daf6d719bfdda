"""What the plain version of a run (`plain_run.py`) computes with.

The networks' outputs and how they depend on the parameters, gradients of losses by central
differences, AdamW, schedules, means.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import recorded_run as run

from gapo_jax.models import Decoder, Discriminator

N, T, DISC_T = 16, 48, 64  # every network sees arrays of one shape


# ---- the networks ----


def _laid_out(rows):
    """Rows of (prompt ids, response ids) from the left, N of them."""
    tokens, mask = np.zeros((2, N, T), np.int32)
    for b, (prompt, response) in enumerate(rows):
        ids = [*prompt, *response]
        tokens[b, : len(ids)], mask[b, : len(ids)] = ids, 1
    return tokens, mask


def _next_logprobs(params, tokens, mask, temperature):
    hidden = Decoder(run.SHAPE).apply({"params": params}, tokens, mask, method="hidden")
    logits = hidden @ params["embed"]["embedding"].T / temperature
    table = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    return jnp.take_along_axis(table, tokens[:, 1:, None], axis=2)[..., 0], hidden


_forward = jax.jit(_next_logprobs)


@jax.jit
def _pull_back(params, tokens, mask, temperature, slopes):
    return jax.grad(
        lambda p: jnp.sum(_next_logprobs(p, tokens, mask, temperature)[0] * slopes)
    )(params)  # fmt: skip


def token_logprobs(params, rows, temperature):
    """Return of each row the log-probs of its response's tokens, and the hidden states that predict
    them."""
    logprobs, hidden = map(np.asarray, _forward(params, *_laid_out(rows), temperature))
    found = []
    for b, (prompt, response) in enumerate(rows):
        at = slice(len(prompt) - 1, len(prompt) - 1 + len(response))
        found.append((logprobs[b, at].astype(np.float64), hidden[b, at].astype(np.float64)))
    return [x for x, _ in found], [h for _, h in found]


def logprob_gradient(params, rows, temperature, slopes):
    """Return the gradient of sum(slope * log-prob) over the tokens of all responses."""
    placed = np.zeros((N, T - 1), np.float32)
    for b, (prompt, response) in enumerate(rows):
        placed[b, len(prompt) - 1 : len(prompt) - 1 + len(response)] = slopes[b]
    return _pull_back(params, *_laid_out(rows), temperature, placed)


def _disc_logits(params, tokens, mask, types):
    return Discriminator(run.DISC_SHAPE).apply({"params": params}, tokens, mask, types)


_disc_forward = jax.jit(_disc_logits)


@jax.jit
def disc_pull_back(params, arrays, slopes):
    return jax.grad(lambda p: jnp.sum(_disc_logits(p, *arrays) * slopes))(params)


@jax.jit
def r1_pull_back(params, arrays, shares):
    """Return the gradient of sum(share * |d logit / d embeddings|^2) over the texts."""
    tokens, mask, types = arrays
    network = Discriminator(run.DISC_SHAPE)

    def penalty(p):
        def apply(*arguments, method):
            return network.apply({"params": p}, *arguments, method=method)

        embedded = apply(tokens, mask, types, method="embed")
        slopes = jax.grad(lambda e: jnp.sum(apply(e, mask, method="score_embedded")))(embedded)
        squares = jnp.sum((slopes * mask[:, :, None]) ** 2, axis=(1, 2))
        return jnp.sum(squares * shares)

    return jax.grad(penalty)(params)


def text_ids(prompt, response):
    """[CLS] prompt [SEP] response [SEP], white space around the texts left out."""
    return tuple(
        i for ids in ([2], _plain_ids(prompt), [3], _plain_ids(response), [3]) for i in ids
    )


def _plain_ids(text):
    return run.DISC_TOKENIZER(text.strip(), add_special_tokens=False)["input_ids"]


def disc_arrays(texts):
    tokens, mask, types = np.zeros((3, N, DISC_T), np.int32)
    for b, (prompt, response) in enumerate(texts):
        ids = text_ids(prompt, response)
        tokens[b, : len(ids)], mask[b, : len(ids)] = ids, 1
        types[b, 2 + len(_plain_ids(prompt)) : len(ids)] = 1
    return tokens, mask, types


def scores_of(params, texts):
    """Return the discriminator's logit of each (prompt, response)."""
    logits = np.asarray(_disc_forward(params, *disc_arrays(texts)), np.float64)
    return logits[: len(texts)].tolist()


# ---- gradients and the optimiser ----


def slopes_of(function, lists, step=1e-6):
    """Return the derivative of a function of lists of numbers by each of them."""
    lists = [list(map(float, one)) for one in lists]
    slopes = [[0.0] * len(one) for one in lists]
    for i, one in enumerate(lists):
        for j, value in enumerate(one):
            one[j] = value + step
            above = function(lists)
            one[j] = value - step
            slopes[i][j] = (above - function(lists)) / (2 * step)
            one[j] = value
    return slopes


def leaves(tree):
    """Return the arrays of a tree by their paths."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in found}


class AdamW:
    """Clipping by the global norm, then AdamW (arXiv 1711.05101): matrices decay, norms do not."""

    def __init__(self, optim):
        self.optim, self.count, self.first, self.second = optim, 0, {}, {}

    def update(self, params, gradients, rate):
        optim, self.count = self.optim, self.count + 1
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        new = {}
        for path, g in gradients.items():
            # A minibatch whose ratios are all clipped has no gradient.
            g = g * min(1.0, optim.clip_norm / norm if norm else 1.0)
            m = optim.b1 * self.first.get(path, 0.0) + (1 - optim.b1) * g
            v = optim.b2 * self.second.get(path, 0.0) + (1 - optim.b2) * g**2
            self.first[path], self.second[path] = m, v
            change = m / (1 - optim.b1**self.count)
            change = change / (np.sqrt(v / (1 - optim.b2**self.count)) + optim.eps)
            if "kernel" in path:
                change = change + optim.weight_decay * params[path]
            new[path] = params[path] - rate * change
        return new


def rate_at(optim, step, total):
    """Return the learning rate of update `step` (from 0) of `total` in the whole run."""
    if step < optim.warmup_steps:
        return optim.learning_rate * step / optim.warmup_steps
    done = min(1.0, (step - optim.warmup_steps) / max(1, total - optim.warmup_steps))
    floor = optim.learning_rate * optim.final_fraction
    share = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return floor + (optim.learning_rate - floor) * share[optim.schedule]


def discriminator_rate(settings, step, warmup):
    """Return the discriminator's: up within a tenth of the warm-up, down to that of the rounds."""
    climb = max(1, warmup // 10)
    if step < climb:
        return settings.optim.learning_rate * step / climb
    done = min(1.0, (step - climb) / max(1, warmup - climb))
    peak, low = settings.optim.learning_rate, settings.round_learning_rate
    return peak + (low - peak) * done


# ---- rewards and advantages ----


def mean(numbers):
    return sum(numbers) / len(numbers)


def deviation(numbers):
    """Return the unbiased standard deviation."""
    middle = mean(numbers)
    return math.sqrt(sum((x - middle) ** 2 for x in numbers) / (len(numbers) - 1))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def whitened(lists):
    """Return numbers with zero mean and unit (unbiased) variance over all of them."""
    every = [x for one in lists for x in one]
    middle, spread = mean(every), deviation(every)
    return [[(x - middle) / spread for x in one] for one in lists]


def rule_reward(row, text):
    """Return the share of a prompt's constraints that hold, 0 for a text that repeats itself."""
    words = text.replace(",", " ").split()
    grams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    if grams and 1 - len(set(grams)) / len(grams) > 0.2:
        return 0.0, False
    holds = ["," not in text, "b" not in words][: len(row.constraints)]
    return mean([float(x) for x in holds]), all(holds)


def gae(rewards, values, gamma, lam):
    """Return advantages: sum over l of (gamma lam)^l delta_{t+l}, V past the end being 0."""
    count = len(rewards)
    values = [*values, 0.0]
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(count)]
    return [
        sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count)) for t in range(count)
    ]
