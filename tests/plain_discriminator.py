"""The discriminator's part of the plain version of a run (`plain_run.py`): Algorithm 1, warm-up and
odd steps."""

from __future__ import annotations

import collections
import math

import jax
import numpy as np
import recorded_run as run
from plain_parts import (
    AdamW,
    N,
    disc_arrays,
    disc_pull_back,
    discriminator_rate,
    leaves,
    r1_pull_back,
    scores_of,
    slopes_of,
    text_ids,
)

from gapo_jax.types import ACCEPTED, GENERATED, REJECTED


class PlainNetworks:
    """The state of the plain run (parameters, moments, statistics, replay, KL coefficient), and
    what the discriminator learns."""

    def __init__(self, record):
        self.record, self.config = record, record.config
        self.ref = record.models.ref_params
        self.policy = leaves(self.trained(self.ref))
        self.critic = leaves(record.critic_start) if record.critic_start is not None else None
        self.disc = leaves(record.models.disc_init_params)
        config = self.config
        self.optimizers = {
            "policy": AdamW(config.ppo.optim),
            "critic": AdamW(config.ppo.critic_optim),
            "disc": AdamW(config.discriminator.optim),
        }
        self.average, self.scores, self.replay = None, [], []
        self.kl_coef, self.keys, self.asked = config.ppo.kl_coef, [], []
        self.sft_seen, self.pairs_seen = collections.Counter(), []
        self.orders = collections.defaultdict(list)
        self.events = iter(record.events)
        name = config.method if config.method != "gapo" else config.ppo.advantage
        self.estimator = {"ppo": "gae", "rpo_online": "rpo"}.get(name, name)
        self.adversarial = config.method == "gapo"
        self.per_batch = config.discriminator.batch_size
        self.warmup = config.discriminator.warmup_epochs * -(-2 * len(run.PAIRS) // self.per_batch)

    # -- parameters --

    @staticmethod
    def trained(params):
        """The upper layer and the final norm are trained (model.trainable_layers=1)."""
        layers = jax.tree.map(lambda leaf: leaf[1:], params["layers"])
        return {"layers": layers, "final_norm": params["final_norm"]}

    def _rebuilt(self, tree, flat):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: np.asarray(flat[jax.tree_util.keystr(path)], np.float32), tree
        )

    def full_policy(self):
        upper = self._rebuilt(self.trained(self.ref), self.policy)
        layers = jax.tree.map(
            lambda low, high: np.concatenate([low[:1], high]), self.ref["layers"], upper["layers"]
        )
        return dict(self.ref) | {"layers": layers, "final_norm": upper["final_norm"]}

    def disc_params(self, flat=None):
        return self._rebuilt(self.record.models.disc_init_params, flat or self.disc)

    def next_event(self, name):
        found, fields = next(self.events)
        assert found == name, f"wanted {name}, got {found}"
        return fields

    # -- the discriminator --

    def update_discriminator(self, texts):
        """One update on texts of (kind, target, weight, (prompt, response)), in their order."""
        settings = self.config.discriminator
        pairs = [text for *_, text in texts]
        total = sum(weight for _, _, weight, _ in texts)

        def compared(lists):
            scores = lists[0]
            pairs = zip(scores[::2], scores[1::2], texts[::2], strict=True)
            return sum(
                weight * math.log1p(math.exp(worse - better))
                for better, worse, (_, _, weight, _) in pairs
            ) / sum(weight for _, _, weight, _ in texts[::2])  # fmt: skip

        def loss(lists):
            if settings.loss == "bradley_terry":
                return compared(lists)
            return sum(
                weight * (math.log1p(math.exp(-abs(x))) + max(x, 0) - x * target)
                for x, (_, target, weight, _) in zip(lists[0], texts, strict=True)
            ) / total  # fmt: skip

        params = self.disc_params()
        slopes = np.zeros(N, np.float32)
        slopes[: len(texts)] = slopes_of(loss, [scores_of(params, pairs)])[0]
        gradients = leaves(disc_pull_back(params, disc_arrays(pairs), slopes))
        if settings.gradient_penalty:
            shares = np.zeros(N, np.float32)
            real = [weight * (kind == ACCEPTED) for kind, _, weight, _ in texts]
            shares[: len(texts)] = np.array(real) / sum(real) * settings.gradient_penalty / 2
            extra = leaves(r1_pull_back(params, disc_arrays(pairs), shares))
            gradients = {path: g + extra[path] for path, g in gradients.items()}
        # The table of words stands still (discriminator.freeze_embeddings).
        gradients = {k: g for k, g in gradients.items() if "'word'" not in k}
        optimizer = self.optimizers["disc"]
        rate = discriminator_rate(settings, optimizer.count, self.warmup)
        self.disc |= optimizer.update(self.disc, gradients, rate)

    def disc_batch(self, known):
        """Read the batch of the next update, with the texts that its ids stand for."""
        fields = self.next_event("disc_update")
        batch = fields["batch"]
        texts = []
        for b in range(len(batch.tokens_BT)):
            real = batch.mask_BT[b] > 0
            text = known[tuple(batch.tokens_BT[b][real].tolist())]
            texts.append(
                (int(batch.classes_B[b]), float(batch.targets_B[b]), float(batch.weights_B[b]),
                 text)
            )  # fmt: skip
        return texts, fields

    def check_weights(self, texts):
        """Both sides have half of the mass: w = N / 2P for the positive part of a target, N / 2(N -
        P) for the negative one."""
        if self.config.discriminator.loss == "bradley_terry":
            assert all(weight == 1 for _, _, weight, _ in texts)
            return
        count, positive = len(texts), sum(target for _, target, _, _ in texts)
        for _, target, weight, _ in texts:
            wanted = target * count / (2 * positive)
            wanted += (1 - target) * count / (2 * (count - positive))
            assert weight == np.float32(wanted).item() or abs(weight - wanted) < 1e-5

    def pair_table(self):
        table = {}
        for pair in run.PAIRS:
            for prompt in (pair.prompt_accepted, pair.prompt_rejected):
                table[text_ids(prompt, pair.response)] = (prompt, pair.response)
        return table

    def check_pairs(self, texts):
        """Real texts are whole pairs, accepted 1 (smoothed), rejected 0; return which pairs."""
        soft = self.config.discriminator.positive_label
        sides = {kind: [] for kind in (ACCEPTED, REJECTED)}
        for kind, target, _, (prompt, response) in texts:
            if kind == GENERATED:
                continue
            (index,) = (
                i for i, pair in enumerate(run.PAIRS)
                if (prompt, response) in ((pair.prompt_accepted, pair.response),
                                          (pair.prompt_rejected, pair.response))
            )  # fmt: skip
            accepted = prompt == run.PAIRS[index].prompt_accepted
            assert kind == (ACCEPTED if accepted else REJECTED)
            assert abs(target - (soft if accepted else 0.0)) < 1e-6
            sides[kind].append(index)
        whole = sorted(sides[ACCEPTED]) == sorted(sides[REJECTED])
        assert whole or self.config.discriminator.generated_prompts == "pairs"
        return sides[ACCEPTED]

    def pairs_in_use(self, done):
        """The easiest pairs come first; their share grows evenly from its start to 1."""
        data, count = self.config.data, len(run.PAIRS)
        if not data.curriculum:
            return count
        begin = data.curriculum_start
        return math.ceil(count * min(1.0, begin + (1 - begin) * done / data.curriculum))

    def warm_up(self):
        settings, orders = self.config.discriminator, []
        for _ in range(settings.warmup_epochs):
            seen = []
            for _ in range(self.warmup // settings.warmup_epochs):
                texts, fields = self.disc_batch(self.pair_table())
                real = [text for text in texts if text[2] > 0]
                self.check_weights(real)
                seen += self.check_pairs(real)
                self.update_discriminator(real)
                self.disc = self.same(self.disc, fields["params"])
            known = self.pairs_in_use(0.0)
            wanted = sorted(i % known for i in range(len(run.PAIRS)))
            assert sorted(seen) == wanted, "an epoch has every pair that is in use equally often"
            orders.append(seen)
        assert orders[0] != orders[1]
        self.average = dict(self.disc)

    def discriminator_round(self, responses, verified):
        """Algorithm 1, odd steps: accepted 1, rejected 0, generated by the label policy."""
        settings, known = self.config.discriminator, self.pair_table()
        fresh = [(row.prompt, text) for row, _, _, text, _ in responses]
        for prompt, text in [*fresh, *self.replay]:
            known[text_ids(prompt, text)] = (prompt, text)
        batches = [self.disc_batch(known) for _ in range(settings.updates_per_round)]
        texts = [text for batch, _ in batches for text in batch]
        if self.gated(texts):
            again = [self.next_event("disc_update") for _ in batches]
            for (_, fields), more in zip(batches, again, strict=True):
                jax.tree.map(np.testing.assert_array_equal, fields["batch"], more["batch"])
            batches += [(texts, more) for (texts, _), more in zip(batches, again, strict=True)]
        self.check_weights(texts)
        self.check_mix(texts, fresh, verified)
        for batch, fields in batches:
            self.update_discriminator(batch)
            self.disc = self.same(self.disc, fields["params"])
        stay = settings.ema_decay
        self.average = {
            path: stay * old + (1 - stay) * self.disc[path] for path, old in self.average.items()
        }
        self.fresh = fresh

    def gated(self, texts):
        """Whether the batches are learned from twice: too few logits are on their target's side."""
        settings = self.config.discriminator
        assert settings.gate_high == 1, "a round that is skipped leaves nothing to compare with"
        if not settings.gate_low:
            return False
        scores, params = [], self.disc_params()
        for start in range(0, len(texts), N):
            scores += scores_of(params, [text for *_, text in texts[start : start + N]])
        right = [(x > 0) == (target > 0.5) for x, (_, target, _, _) in zip(scores, texts)]
        return sum(right) / len(right) < settings.gate_low

    def check_mix(self, texts, fresh, verified):
        """The shares, labels and prompts of a round's texts."""
        settings = self.config.discriminator
        generated = [(target, text) for kind, target, _, text in texts if kind == GENERATED]
        if settings.loss == "bradley_terry":
            self.check_comparisons(texts)
            return
        wanted = round(len(texts) * settings.generated_fraction)
        old = min(round(wanted * settings.replay_fraction), len(self.replay))
        assert len(generated) == wanted
        assert sum(text in self.replay for _, text in generated) == old
        assert sum(text in fresh for _, text in generated) == wanted - old
        assert len({text for _, text in generated}) == wanted
        for target, text in generated:
            good = settings.positive_label if verified[text] else 0.0
            label = {"paper": 0.0, "verified": good, "soft": settings.soft_label}
            assert abs(target - label[settings.label_policy]) < 1e-6
        pairs = self.check_pairs(texts)
        if settings.generated_prompts == "pairs":
            # Real texts are those of the pairs whose accepted prompts the generated ones answer, in
            # proportion. Here no other pair rejects such a prompt, so its own rejected side stands
            # for that.
            own = {pair.prompt_rejected: pair.prompt_accepted for pair in run.PAIRS}
            real = [text for kind, _, _, text in texts if kind != GENERATED]
            asked = collections.Counter(prompt for _, (prompt, _) in generated)
            under = collections.Counter(own.get(prompt, prompt) for prompt, _ in real)
            for prompt in asked | under:
                share = asked[prompt] * len(real) / len(generated)
                assert abs(under[prompt] - share) < 1
            return
        if not self.config.data.curriculum:
            assert not set(pairs) & set(self.pairs_seen), "rounds learn from other pairs"
        self.pairs_seen += pairs

    def check_comparisons(self, texts):
        """The better text stands before the worse one; the share of comparisons with generated text
        is what was asked for, the others are whole pairs."""
        settings = self.config.discriminator
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
        for better, worse in pairs:
            assert (better[1], worse[1]) == (1.0, 0.0)
        mixed = [pair for pair in pairs if GENERATED in (pair[0][0], pair[1][0])]
        assert len(mixed) == round(len(pairs) * settings.generated_fraction)
        for (kind, _, _, better), (other, _, _, worse) in pairs:
            if GENERATED not in (kind, other):
                assert (kind, other) == (ACCEPTED, REJECTED) and better[1] == worse[1]

    @staticmethod
    def same(plain, params, atol=3e-5):
        """Compare parameters, and return those of the program to go on from: they are float32, and
        Adam divides by small numbers."""
        params = leaves(params)
        assert params.keys() == plain.keys()
        for path, leaf in params.items():
            np.testing.assert_allclose(leaf, plain[path], rtol=1e-3, atol=atol, err_msg=path)
        return params
