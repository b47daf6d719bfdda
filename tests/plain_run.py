"""Algorithm 1 of GAPO (arXiv 2503.20194) once more, slowly and from the papers' text.

`follow(record)` walks through what a run did (`recorded_run.py`) and computes every number of it in
plain Python: loops over rows and tokens, float64, gradients of losses by central differences and
AdamW on numpy arrays. Of the package it takes the networks alone (the log-probs of given tokens and
the logits of given texts, and how they depend on the parameters); no loss, no estimator, no batch.
What is drawn at random it does not foretell: it asserts what must hold of any draw.
"""

from __future__ import annotations

import collections
import math

import numpy as np
import recorded_run as run
from plain_discriminator import PlainNetworks
from plain_parts import (
    deviation,
    gae,
    leaves,
    logprob_gradient,
    mean,
    rate_at,
    rule_reward,
    scores_of,
    sigmoid,
    slopes_of,
    token_logprobs,
    whitened,
)


class Plain(PlainNetworks):
    """The rounds: even steps of Algorithm 1, and what they need."""

    # -- one round --

    def sampled(self):
        """Read the round's responses: (prompt row, prompt ids, response ids, text, ended)."""
        config, rows = self.config, []
        wanted = config.ppo.prompts_per_round * config.ppo.samples_per_prompt
        while len(rows) < wanted:
            fields = self.next_event("sample")
            assert fields["temperature"] == config.sampling.temperature
            self.same(leaves(self.full_policy()), fields["params"])
            # A last batch that is not full is filled up with rows that nobody reads.
            rows += fields["rows"][: wanted - len(rows)]
        found, prompts = [], {}
        for row in run.rows_of(config):
            # One system turn and one user turn in the template of the tokenizer.
            turns = [1, *run.ids_of("Be.\n"), 1, *run.ids_of(row.prompt + "\n"), *run.ids_of(">")]
            prompts[tuple(turns)] = row
        for fields in rows:
            self.keys.append(fields["key"])
            text, ended = run.written(fields["prompt"], fields["key"])
            row = prompts[tuple(fields["prompt"])]
            found.append((row, fields["prompt"], fields["ids"], text, ended))
        size = config.ppo.samples_per_prompt
        for start in range(0, wanted, size):
            (key,) = {row.key for row, *_ in found[start : start + size]}
            self.asked.append(key)
        return found

    def rewards_of(self, responses, rules, snapshot):
        """Return score and reward of each response, the running statistics carried on."""
        config, reward = self.config, self.config.reward
        logits = None
        if reward.source != "verifier":
            logits = scores_of(
                self.disc_params(snapshot), [(row.prompt, text) for row, _, _, text, _ in responses]
            )
        scores = []
        for i, (_, _, ids, _, _) in enumerate(responses):
            score = rules[i]
            if logits is not None:
                score = sigmoid(logits[i]) if reward.squash == "sigmoid" else logits[i]
            if reward.source == "mix":
                score = (1 - reward.verifier_weight) * score + reward.verifier_weight * rules[i]
            over = len(ids) - (config.sampling.max_new_tokens - reward.overlong_tokens)
            scores.append(score - min(1.0, max(0.0, over / reward.overlong_tokens)))
        self.scores += scores
        size = config.ppo.samples_per_prompt
        rewards = []
        for i, score in enumerate(scores):
            group = scores[i // size * size : (i // size + 1) * size]
            known = {"running": self.scores, "batch": scores, "group": group, "none": [0.0, 0.0]}
            known, extra = known[reward.standardise], 1e-6
            if reward.standardise == "group":
                extra = reward.group_eps
            value = score if reward.standardise == "none" else score - mean(known)
            value = value if reward.standardise == "none" else value / (deviation(known) + extra)
            value = min(reward.clip, max(-reward.clip, value))
            rewards.append(value - (0.0 if responses[i][4] else reward.missing_eos_penalty))
        return logits, rewards

    def chosen_rows(self, rewards):
        """The best and the worst of each prompt, `ppo.train_samples` of them, or all."""
        ppo, found = self.config.ppo, []
        size, keep = ppo.samples_per_prompt, ppo.train_samples
        for start in range(0, len(rewards), size):
            order = sorted(range(start, start + size), key=lambda i: rewards[i])
            found += sorted(order if not keep else order[: keep // 2] + order[-(keep // 2) :])
        return found

    def head_values(self, features):
        """The critic's head: a layer with tanh, then one number."""
        up, bias = self.critic["['head']['up']['kernel']"], self.critic["['head']['up']['bias']"]
        out, last = self.critic["['head']['out']['kernel']"], self.critic["['head']['out']['bias']"]
        hidden = [np.tanh(x @ up + bias) for x in features]
        return [(h @ out)[:, 0] + last[0] for h in hidden], hidden

    def advantages_of(self, rewards, old, ref, values):
        """Return advantages of each token and, with a critic, the returns."""
        ppo, kl_coef = self.config.ppo, self.kl_coef
        gaps = [o - r for o, r in zip(old, ref, strict=True)]
        size = ppo.train_samples or ppo.samples_per_prompt

        def group(numbers, i):
            return numbers[i // size * size : (i // size + 1) * size]

        def on_tokens(numbers, coef):
            return [
                [-coef * g + (numbers[i] if t == len(gap) - 1 else 0.0) for t, g in enumerate(gap)]
                for i, gap in enumerate(gaps)
            ]

        if self.estimator == "gae":
            token_rewards = on_tokens(rewards, kl_coef)
            advantages = [
                gae(token_rewards[i], values[i], ppo.gamma, ppo.lam) for i in range(len(rewards))
            ]
            returns = [
                [a + v for a, v in zip(advantages[i], values[i], strict=True)]
                for i in range(len(rewards))
            ]
            return (whitened(advantages) if ppo.whiten_advantages else advantages), returns
        if self.estimator == "reinforce_pp":
            if ppo.group_baseline:
                rewards = [r - mean(group(rewards, i)) for i, r in enumerate(rewards)]
            token_rewards = on_tokens(rewards, 0.0 if ppo.group_baseline else kl_coef)
            to_go = [
                [sum(ppo.gamma ** (k - t) * one[k] for k in range(t, len(one)))
                 for t in range(len(one))]
                for one in token_rewards
            ]  # fmt: skip
            return whitened(to_go), None
        if self.estimator == "rloo":
            totals = [r - kl_coef * gap.sum() for r, gap in zip(rewards, gaps, strict=True)]
            rewards = [
                total - (sum(group(totals, i)) - total) / (size - 1)
                for i, total in enumerate(totals)
            ]
        if self.estimator == "grpo":
            centred = [r - mean(group(rewards, i)) for i, r in enumerate(rewards)]
            if self.config.grpo.variant != "dr_grpo":
                centred = [c / (deviation(group(rewards, i)) + 1e-4) for i, c in enumerate(centred)]
            rewards = centred
        return [[r] * len(gap) for r, gap in zip(rewards, gaps, strict=True)], None

    def round(self, index):
        responses = self.sampled()
        judged = [rule_reward(row, text) for row, _, _, text, _ in responses]
        rules = [share for share, _ in judged]
        verified = self.verified
        for (row, _, _, text, _), (_, good) in zip(responses, judged, strict=True):
            verified[row.prompt, text] = good
        before = dict(self.disc)
        if self.adversarial:
            self.discriminator_round(responses, verified)
        settings = self.config.discriminator
        snapshot = {"pre": before, "post": self.disc, "ema": self.average}[settings.score_with]
        if not self.adversarial:
            snapshot = self.disc
        logits, rewards = self.rewards_of(responses, rules, snapshot)
        self.check_samples(index, responses, rules, logits)
        chosen = self.chosen_rows(rewards)
        rows = [responses[i] for i in chosen]
        texts = [(prompt, ids) for _, prompt, ids, _, _ in rows]
        temperature = self.config.sampling.temperature
        old, features = token_logprobs(self.full_policy(), texts, temperature)
        ref, ref_features = token_logprobs(self.ref, texts, temperature)
        if self.config.model.critic == "reference":
            features = ref_features
        values = self.head_values(features)[0] if self.critic else None
        kept = [rewards[i] for i in chosen]
        advantages, returns = self.advantages_of(kept, old, ref, values)
        learn = [
            not self.config.grpo.mask_truncated or self.estimator != "grpo" or ended
            for *_, ended in rows
        ]
        facts = {
            (tuple(prompt), tuple(ids)): {
                "i": i, "row": (prompt, ids), "old": old[i], "ref": ref[i], "reward": kept[i],
                "advantage": advantages[i], "learn": learn[i], "features": features[i],
                "value": values[i] if values else None, "return": returns[i] if returns else None,
            }
            for i, (prompt, ids) in enumerate(texts)
        }  # fmt: skip
        if self.critic:
            self.critic_round(facts)
        self.policy_round(facts)
        gap = sum(float((o - r).sum()) for o, r in zip(old, ref, strict=True))
        kl = gap / sum(len(ids) for _, ids in texts)
        self.check_metrics(index, kl, kept)
        ppo = self.config.ppo
        if ppo.kl_target:
            error = min(0.2, max(-0.2, kl / ppo.kl_target - 1))
            self.kl_coef *= 1 + error * len(texts) / ppo.kl_horizon
        if self.adversarial:
            merged = self.replay + [text for text in self.fresh if text not in self.replay]
            found = self.record.saved[index + 1][2]["replay"]
            texts = [(text["prompt"], text["response"]) for text in found]
            assert len(set(texts)) == len(texts) == min(len(merged), settings.replay_capacity)
            assert set(texts) <= set(merged) and (set(texts) & set(self.fresh))
            assert all(text["verified"] == verified[t] for text, t in zip(found, texts))
            self.replay = texts

    # -- the updates --

    def minibatches(self, name, facts, epochs):
        """Yield the rows of every minibatch: each epoch takes every row once, in a new order."""
        size, count = self.config.ppo.minibatch_size, len(facts)
        for _ in range(epochs):
            order = []
            for _ in range(count // size):
                fields = self.next_event(name)
                experience = fields["batch"].experience
                rows = [self.row_of(experience, b, facts) for b in range(size)]
                self.check_rows(experience, rows)
                order += [row["i"] for row in rows]
                yield fields, rows
            assert sorted(order) == list(range(count)), f"{name}: an epoch has every row once"
            self.orders[name].append(order)

    @staticmethod
    def row_of(experience, b, facts):
        tokens, real = experience.tokens_BT[b], experience.mask_BT[b] > 0
        response = experience.mask_BT[b][-run.NEW_TOKENS :] > 0
        ids = tokens[-run.NEW_TOKENS :][response].tolist()
        return facts[tuple(tokens[real].tolist()[: -len(ids)]), tuple(ids)]

    @staticmethod
    def check_rows(experience, rows):
        """Every number of a row belongs to that row."""
        names = {"old": "old_logprobs_BR", "ref": "ref_logprobs_BR", "advantage": "advantages_BR",
                 "value": "values_BR", "return": "returns_BR"}  # fmt: skip
        for b, row in enumerate(rows):
            count = len(row["row"][1])
            wanted = count if row["learn"] else 0
            assert int(experience.response_mask_BR[b].sum()) == wanted
            for name, field in names.items():
                if row[name] is not None:
                    found = getattr(experience, field)[b][:count]
                    np.testing.assert_allclose(
                        found, row[name], rtol=2e-3, atol=2e-3, err_msg=f"{name} of row {b}"
                    )
            assert abs(float(experience.rewards_B[b]) - row["reward"]) < 1e-3

    def critic_round(self, facts):
        ppo, optimizer = self.config.ppo, self.optimizers["critic"]
        for fields, rows in self.minibatches("critic", facts, ppo.critic_epochs):
            values, hidden = self.head_values([row["features"] for row in rows])
            tokens = sum(len(v) for v in values)

            def loss(lists, rows=rows, tokens=tokens):
                total = 0.0
                for one, row in zip(lists, rows, strict=True):
                    for v, v_old, goal in zip(one, row["value"], row["return"], strict=True):
                        near = min(v_old + ppo.value_clip, max(v_old - ppo.value_clip, v))
                        total += max((v - goal) ** 2, (near - goal) ** 2)
                return 0.5 * total / tokens

            slopes = [np.array(one) for one in slopes_of(loss, values)]
            out = self.critic["['head']['out']['kernel']"]
            gradients = {path: np.zeros_like(leaf) for path, leaf in self.critic.items()}
            for slope, h, row in zip(slopes, hidden, rows, strict=True):
                back = slope[:, None] * out[:, 0] * (1 - h**2)
                gradients["['head']['out']['kernel']"] += (h.T @ slope)[:, None]
                gradients["['head']['out']['bias']"] += slope.sum()
                gradients["['head']['up']['kernel']"] += row["features"].T @ back
                gradients["['head']['up']['bias']"] += back.sum(axis=0)
            total = self.config.rounds * ppo.critic_epochs * (len(facts) // ppo.minibatch_size)
            rate = rate_at(ppo.critic_optim, optimizer.count, total)
            self.critic = optimizer.update(self.critic, gradients, rate)
            self.critic = self.same(self.critic, fields["params"], atol=2e-4)

    def policy_round(self, facts):
        ppo, optimizer = self.config.ppo, self.optimizers["policy"]
        temperature = self.config.sampling.temperature
        total = self.config.rounds * ppo.epochs * (len(facts) // ppo.minibatch_size)
        for fields, rows in self.minibatches("policy", facts, ppo.epochs):
            assert abs(float(fields["batch"].kl_coef) - self.kl_coef) < 1e-5
            if fields["width"] is not None:
                longest = max(len(row["row"][0]) + len(row["row"][1]) for row in rows)
                assert fields["width"] >= longest
                self.widths.add(fields["width"])
            params, texts = self.full_policy(), [row["row"] for row in rows]
            logprobs, _ = token_logprobs(params, texts, temperature)
            slopes = slopes_of(lambda lists, rows=rows: self.policy_loss(lists, rows), logprobs)
            loss = self.policy_loss(logprobs, rows)
            gradients = leaves(self.trained(logprob_gradient(params, texts, temperature, slopes)))
            if ppo.sft_coef:
                likely, extra = self.sft_part(params, fields["demonstrations"])
                loss += likely
                gradients = {path: g + extra[path] for path, g in gradients.items()}
            assert abs(float(fields["metrics"]["policy/loss"]) - loss) < 2e-3 * max(1, abs(loss))
            rate = rate_at(ppo.optim, optimizer.count, total)
            self.policy = optimizer.update(self.policy, gradients, rate)
            self.policy = self.same(self.policy, fields["params"], atol=5e-4)

    def sft_part(self, params, batch):
        """ppo.sft_coef times the mean negative log-likelihood of the tokens of accepted pairs."""
        texts, coef = [], self.config.ppo.sft_coef
        for b in range(len(batch.tokens_BT)):
            real = batch.mask_BT[b] > 0
            ids = batch.tokens_BT[b][real].tolist()
            (pair,) = (
                pair for pair in run.PAIRS
                if ids == [1, *run.ids_of("Be.\n"), 1, *run.ids_of(f"{pair.prompt_accepted}\n>"),
                           *run.ids_of(pair.response), run.EOS]
            )  # fmt: skip
            self.sft_seen[pair.task] += 1
            count = len(pair.response) + 1
            texts.append((ids[:-count], ids[-count:]))
        logprobs, _ = token_logprobs(params, texts, 1.0)
        tokens = sum(len(ids) for _, ids in texts)
        slopes = [[-coef / tokens] * len(ids) for _, ids in texts]
        gradients = leaves(self.trained(logprob_gradient(params, texts, 1.0, slopes)))
        return -coef * sum(float(x.sum()) for x in logprobs) / tokens, gradients

    def policy_loss(self, lists, rows):
        """The loss of a minibatch from the log-probs of its rows' tokens."""
        if self.estimator == "rpo":
            return self.rpo_loss(lists, rows)
        ppo, config = self.config.ppo, self.config
        kind = {"grpo": "k3", "reinforce_pp": "k2" if ppo.group_baseline else None}
        in_loss = kind.get(self.estimator)
        per_row = []
        for logprobs, row in zip(lists, rows, strict=True):
            if not row["learn"]:
                per_row.append([])
                continue
            log_ratios = [new - old for new, old in zip(logprobs, row["old"], strict=True)]
            if self.estimator == "rloo":
                log_ratios = [sum(log_ratios)] * len(log_ratios)
            if self.estimator == "grpo" and config.grpo.variant == "gspo":
                log_ratios = [mean(log_ratios)] * len(log_ratios)
            losses = []
            for t, log_ratio in enumerate(log_ratios):
                ratio, advantage = math.exp(log_ratio), row["advantage"][t]
                clipped = min(1 + ppo.clip_high, max(1 - ppo.clip_low, ratio))
                token = -min(ratio * advantage, clipped * advantage)
                gap = logprobs[t] - row["ref"][t]
                if in_loss == "k3":
                    token += self.kl_coef * (math.exp(-gap) - 1 + gap)
                if in_loss == "k2":
                    token += self.kl_coef * gap**2 / 2
                losses.append(token)
            per_row.append(losses)
        every = [x for one in per_row for x in one]
        variant = config.grpo.variant if self.estimator == "grpo" else ""
        if variant == "dr_grpo":
            return sum(every) / (len(rows) * config.sampling.max_new_tokens)
        if variant == "dapo":
            return mean(every)
        by_row = (
            variant in ("grpo", "gspo") or self.estimator == "rloo" or ppo.aggregation == "sequence"
        )
        # A row that is cut off has no token to learn from, and counts as a row all the same.
        return sum(mean(one) for one in per_row if one) / len(rows) if by_row else mean(every)

    def rpo_loss(self, lists, rows):
        """KL(softmax(eta r) to softmax(beta log(pi / ref))) over the samples of each prompt."""
        beta, eta = self.config.rpo.beta, self.config.rpo.eta
        groups = collections.defaultdict(list)
        for logprobs, row in zip(lists, rows, strict=True):
            rho = sum(logprobs) - float(row["ref"].sum())
            groups[tuple(row["row"][0])].append((beta * rho, eta * row["reward"]))
        total = 0.0
        for members in groups.values():
            assert len(members) == self.config.ppo.samples_per_prompt
            a, b = ([math.exp(x) for x in side] for side in zip(*members, strict=True))
            p, q = ([x / sum(side) for x in side] for side in (a, b))
            total += sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
        return total / len(groups)

    # -- what is left behind --

    def check_samples(self, index, responses, rules, logits):
        size = len(responses)
        lines = self.samples[index * size : (index + 1) * size]
        for i, (line, (row, _, _, text, _)) in enumerate(zip(lines, responses, strict=True)):
            assert (line["round"], line["prompt"], line["response"]) == (
                index + 1, row.prompt, text.strip()
            ) or line["response"] == text  # fmt: skip
            assert abs(line["rule_reward"] - rules[i]) < 1e-6
            if logits is None:
                assert line["score"] is None
            else:
                assert abs(line["score"] - logits[i]) < 1e-3

    def check_metrics(self, index, kl, rewards):
        found = {}
        for line in self.metrics:
            if line["round"] == index + 1:
                found |= line
        wanted = {"kl/ref": kl, "reward/mean": mean(rewards)}
        for name, value in wanted.items():
            assert abs(found[name] - value) < 2e-3, name


def follow(record, metrics, samples):
    """Compare a run with the plain one; return the latter, for what else a test wants to know."""
    plain = Plain(record)
    plain.metrics, plain.samples, plain.verified, plain.widths = metrics, samples, {}, set()
    config = record.config
    if config.reward.source != "verifier":
        plain.warm_up()
    for index in range(config.rounds):
        plain.round(index)
    assert next(plain.events, None) is None, "the run did more than that"
    # Every key is drawn from once, and all prompts are asked before one is asked again.
    assert len(set(plain.keys)) == len(plain.keys)
    count = config.rounds * config.ppo.prompts_per_round
    assert len(set(plain.asked)) == len(plain.asked) == count or config.data.curriculum
    if config.ppo.sft_coef:
        seen = [plain.sft_seen[pair.task] for pair in run.PAIRS]
        assert max(seen) - min(seen) <= 1, "accepted pairs come equally often"
    for name, orders in plain.orders.items():
        # Minibatches that are cut by length have few orders to choose from.
        distinct = 2 if config.ppo.length_buckets > 1 else len(orders)
        assert len({tuple(order) for order in orders}) >= distinct, name
    state = record.state
    assert abs(float(state.kl_coef) - plain.kl_coef) < 1e-5
    count, middle, squares = (float(x) for x in state.reward_stats)
    assert count == len(plain.scores)
    assert abs(middle - mean(plain.scores)) < 1e-3
    assert abs(math.sqrt(squares / (count - 1)) - deviation(plain.scores)) < 1e-3
    assert [step for step, _, _ in record.saved] == list(range(config.rounds + 1))
    return plain
