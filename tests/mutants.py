"""Breaks the program on purpose, one small fault at a time, and lists the faults that no test saw.

    python tests/mutants.py              all of them
    python tests/mutants.py round rpo    those whose name or file holds one of the words
    python tests/mutants.py --check      only whether every fault can still be put in

    python tests/mutants.py --list       names and files of all

A fault is a file, a text that occurs in it exactly once, what takes its place, and the tests that
lie nearest. It is put into a temporary copy of the tree, where those tests run in a process of
their own (forked from this one, which has imported what the package imports). It is caught if a
test fails; if all pass it has survived, and so it has where pytest cannot collect the tests (its
exit status 2), as a fault that leaves nothing to run has shown nothing about the tests. All these
tests must pass in the copy before the first fault is put in. A text that does not occur exactly
once ends the script at once: the program has changed, and the fault has to be put anew.

Exit status: 1 if more than `ALLOWED` faults survive that have no reason in `EXPLAINED`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

# Imported once for all faults. Nothing of the package is, and no device is touched before the fork.
import flax.linen  # noqa: F401
import jax  # noqa: F401
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import tensorboardX  # noqa: F401
import transformers  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = 0
# Why a fault may survive, by its name.
EXPLAINED: dict[str, str] = {}

NUMBERS = "tests/train/online/test_round_numbers.py"
OFFLINE = "tests/train/test_offline_numbers.py"
COMBINE, FUNCTIONS = ("tests/rewards/test_combine.py",), ("tests/rewards/test_functions.py",)
SOURCES = ("tests/train/online/test_rewards.py",)
ROWS = "tests/train/offline/test_rows.py"


PASSED, FAILED, NOT_COLLECTED = 0, 1, 2  # exit statuses of pytest


class Fault(NamedTuple):
    """One fault: what it is called, where it is put, and the arguments of pytest that find it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _numbers(*cases: str) -> tuple[str, ...]:
    return NUMBERS, "-k", " or ".join(f"[{case}]" for case in cases)


GAE, RLOO, GRPO = _numbers("gae"), _numbers("rloo"), _numbers("grpo")
PLUS, RPO = _numbers("reinforce_pp"), _numbers("rpo")
DR_GRPO = _numbers("dr_grpo")
BASELINE = _numbers("reinforce_pp_group_baseline")
DAPO, GSPO, EVERYTHING = _numbers("dapo"), _numbers("gspo"), _numbers("everything")
COMPARED = _numbers("bradley_terry")
SHARED = ("tests/train/discriminator/test_pair_prompts.py",)
MIX = ("tests/train/discriminator/test_batches.py",)
CHECKS, WORKDIR = ("tests/train/test_checks.py",), ("tests/train/test_workdir.py",)
OPTIMIZERS, CHECKPOINT = ("tests/train/test_optimizers.py",), ("tests/test_checkpoint.py",)
STOPS = ("tests/runs/test_stops.py", "-k", "only_good")
DROPOUT = (NUMBERS, "-k", "dropout")
KILLED = (NUMBERS, "-k", "killed")
ONLINE, DISC = "gapo_jax/train/online/", "gapo_jax/train/discriminator/"
EXPERIENCE = "gapo_jax/rollout/experience.py"
BUILD = "gapo_jax/train/build.py"

FAULTS = (
    # The round.
    Fault("rewards of other rows", ONLINE + "experience.py",
          "rewards.rewards_B[rewards.chosen],", "rewards.rewards_B[rewards.chosen][::-1],", PLUS),
    Fault("rewards of the first rows", ONLINE + "experience.py",
          "rewards.rewards_B[rewards.chosen],",
          "rewards.rewards_B[: len(rewards.chosen)],", GAE),
    Fault("responses under other prompts", ONLINE + "rollout.py",
          "rows = [row for row in prompts for _ in range(config.ppo.samples_per_prompt)]",
          "rows = [row for _ in range(config.ppo.samples_per_prompt) for row in prompts]", PLUS),
    Fault("texts of the discriminator under other prompts", ONLINE + "rollout.py",
          "GeneratedText(row.prompt, text, is_accepted",
          "GeneratedText(rows[0].prompt, text, is_accepted", BASELINE),
    Fault("old and reference log-probs swapped", ONLINE + "experience.py",
          "        logprobs.old_logprobs_BR,\n        logprobs.ref_logprobs_BR,\n",
          "        logprobs.ref_logprobs_BR,\n        logprobs.old_logprobs_BR,\n", PLUS),
    Fault("no KL in the reward", EXPERIENCE,
          "rewards_BR = token_rewards(rewards_B, *logprobs, mask_BR, kl_coef)",
          "rewards_BR = token_rewards(rewards_B, *logprobs, mask_BR, 0.0)", GAE),
    Fault("no KL in REINFORCE++", EXPERIENCE,
          "token_rewards(rewards_B, logprobs_BR, ref_logprobs_BR, mask_BR, kl_coef)",
          "token_rewards(rewards_B, logprobs_BR, ref_logprobs_BR, mask_BR, 0.0)", PLUS),
    Fault("KL after RLOO's baseline", EXPERIENCE,
          "leave_one_out(rewards_B - kl_coef * kl_B, group_size)",
          "leave_one_out(rewards_B, group_size) - kl_coef * kl_B", RLOO),
    Fault("penalty of the missing end with the wrong sign", ONLINE + "rewards.py",
          "rewards_B -= reward.missing_eos_penalty", "rewards_B += reward.missing_eos_penalty",
          PLUS),
    Fault("penalty for those that ended", ONLINE + "rewards.py",
          "endless_B = ~ended_responses", "endless_B = ended_responses", PLUS),
    Fault("overlong penalty with the wrong sign", ONLINE + "rewards.py",
          "scores_B += overlong_penalty", "scores_B -= overlong_penalty", PLUS),
    Fault("overlong penalty of the prompt too", ONLINE + "rewards.py",
          "rollout.arrays.response_mask_BR.sum(axis=1)", "rollout.arrays.mask_BT.sum(axis=1)",
          PLUS),
    Fault("temperature 1 in sampling", ONLINE + "rollout.py",
          "temperature=config.sampling.temperature,", "temperature=1.0,", PLUS),
    Fault("temperature 1 in scoring", BUILD,
          "temperature=config.sampling.temperature,", "temperature=1.0,", PLUS),
    Fault("the first policy samples in every round", ONLINE + "rollout.py",
          "ctx.sampling_params(state),", "ctx.models.ref_params,", PLUS),
    Fault("running statistics lost", ONLINE + "loop.py",
          "state.replace(reward_stats=rewards.stats)", "state", GAE),
    Fault("the group is that of training", ONLINE + "rewards.py",
          "group_size=config.ppo.samples_per_prompt,", "group_size=2,", PLUS),
    Fault("worst rows alone", ONLINE + "rewards.py",
          "order_AG[:, -half:]", "order_AG[:, half : 2 * half]", GAE),
    Fault("rewards after the update where before is asked", ONLINE + "rewards.py",
          'config.discriminator.score_with == "pre"', 'config.discriminator.score_with == "none"',
          GAE),
    Fault("verifier's weight the wrong way", "gapo_jax/config/online.py",
          "return 1.0 - self.verifier_weight, self.verifier_weight",
          "return self.verifier_weight, 1.0 - self.verifier_weight", RLOO),
    Fault("a source left out counts as 0 in its group", "gapo_jax/rewards/combine.py",
          "mean = np.nanmean(values,", "mean = np.mean(np.nan_to_num(values),", COMBINE),
    Fault("GDPO without its last step", "gapo_jax/rewards/combine.py",
          "return _normalised(weighted_sum(scaled_BK, weights), axis=0)",
          "return weighted_sum(scaled_BK, weights)", COMBINE),
    Fault("GDPO normalised by group once more", ONLINE + "experience.py",
          'config.grpo.variant != "dr_grpo" and by_group', 'config.grpo.variant != "dr_grpo"',
          SOURCES),
    Fault("scores that overrule verdicts", "gapo_jax/rewards/combine.py",
          "_ROOM = 0.45", "_ROOM = 0.55", COMBINE),
    Fault("a failed function gets the best score", "gapo_jax/rewards/functions.py",
          "min([floor, *valid])", "max([floor, *valid])", FUNCTIONS),
    Fault("texts are taken for numbers", "gapo_jax/rewards/functions.py",
          "number = value.__float__()", "number = float(value)", FUNCTIONS),
    Fault("each process takes its own word", ONLINE + "reward_sources.py",
          'processes.gather("rewards", answers)[0]', 'processes.gather("rewards", answers)[-1]',
          SOURCES),
    Fault("a row without a score is learned from", ONLINE + "experience.py",
          "(rollout.learn_B & rewards.scored_B)", "(rollout.learn_B)", SOURCES),
    Fault("GAE's lambda not passed on", ONLINE + "experience.py",
          '"lam": ppo.lam, ', "", GAE),
    Fault("gamma not passed on", ONLINE + "experience.py",
          '"gamma": ppo.gamma, ', "", PLUS),
    Fault("whitening off", ONLINE + "experience.py",
          '"whiten_advantages": ppo.whiten_advantages', '"whiten_advantages": False', GAE),
    Fault("Dr. GRPO with the deviation", ONLINE + "experience.py",
          'config.grpo.variant != "dr_grpo"', "True", DR_GRPO),
    Fault("no group baseline", ONLINE + "experience.py",
          '"group_baseline": ppo.group_baseline,', '"group_baseline": False,', BASELINE),
    Fault("cut-off rows learned from", ONLINE + "rollout.py",
          "learn_B &= ended_responses(config, ctx.models, arrays)", "pass", GRPO),
    Fault("adaptive KL of the wrong sign", "gapo_jax/losses/kl.py",
          "(1.0 + error *", "(1.0 - error *", PLUS),
    Fault("adaptive KL not carried on", ONLINE + "update.py",
          "critic=critic, kl_coef=kl_coef)", "critic=critic)", PLUS),
    Fault("adaptive KL of the round before", ONLINE + "update.py",
          "                state.kl_coef,\n            )\n            demonstrations",
          "                ctx.config.ppo.kl_coef,\n            )\n            demonstrations",
          GRPO),
    # Updates of policy and critic.
    Fault("critic features of other rows", ONLINE + "update.py",
          "take_rows(logprobs.features_BRD, rows),",
          "take_rows(logprobs.features_BRD, rows[::-1]),", GAE),
    Fault("critic on the reference's features", "gapo_jax/train/forward.py",
          '"policy": old_hidden_BRD}', '"policy": ref_hidden_BRD}', GAE),
    Fault("frozen layers' output of other rows", ONLINE + "update.py",
          "                take_rows(experience.logprobs.frozen_hidden_BTD, rows),",
          "                take_rows(experience.logprobs.frozen_hidden_BTD, rows[::-1]),", GAE),
    Fault("value clip not passed on", ONLINE + "steps.py",
          "clip=config.ppo.value_clip,", "clip=None,", GAE),
    Fault("critic learns as often as the policy", ONLINE + "update.py",
          "config.ppo.critic_epochs if name == Stream.CRITIC_ORDER else config.ppo.epochs",
          "config.ppo.epochs", GAE),
    Fault("one order for all rounds", ONLINE + "update.py",
          "path = config.seed, name, index, epoch", "path = config.seed, name, 0, epoch", PLUS),
    Fault("critic from the start of the round", ONLINE + "update.py",
          "policy=policy, critic=critic,", "policy=policy, critic=state.critic,", GAE),
    Fault("demonstrations of the first round again", ONLINE + "update.py",
          "ctx.sft_batches.batch(done + len(updates))", "ctx.sft_batches.batch(len(updates))", GAE),
    Fault("demonstrations at the sampling temperature", ONLINE + "steps.py",
          "plain = dataclasses.replace(spec, temperature=1.0)", "plain = spec", GAE),
    Fault("weight of demonstrations dropped", ONLINE + "steps.py",
          "config.ppo.sft_coef * nll", "nll", GAE),
    Fault("clip-higher not passed on", ONLINE + "objectives.py",
          "clip_high=config.ppo.clip_high,", "clip_high=config.ppo.clip_low,", GRPO),
    Fault("RLOO by token", ONLINE + "objectives.py", 'return "product"', 'return "sequence"', RLOO),
    Fault("no KL in GRPO's loss", ONLINE + "objectives.py",
          "loss = loss + kl_coef * drift", "loss = loss", GRPO),
    Fault("k2 where k3 is asked", "gapo_jax/methods.py",
          'return "k3" if chosen == "grpo" else None', 'return "k2" if chosen == "grpo" else None',
          GRPO),
    Fault("Dr. GRPO divides by the tokens", ONLINE + "objectives.py",
          'return {"aggregation": "token", "denominator": rows * config.sampling.max_new_tokens}',
          'return {"aggregation": "token", "denominator": None}', DR_GRPO),
    Fault("masked rows do not count", ONLINE + "objectives.py",
          'return {"aggregation": "sequence", "denominator": rows}',
          'return {"aggregation": "sequence", "denominator": None}', GRPO),
    Fault("aggregation not passed on", ONLINE + "objectives.py",
          '"aggregation": config.ppo.aggregation,', '"aggregation": "token",', PLUS),
    Fault("RPO's samples mixed between prompts", ONLINE + "update.py",
          'if estimator(config) == "rpo" else 1', 'if estimator(config) == "none" else 1', RPO),
    Fault("RPO's beta and eta swapped", ONLINE + "objectives.py",
          "        beta=config.rpo.beta,\n        eta=config.rpo.eta,",
          "        beta=config.rpo.eta,\n        eta=config.rpo.beta,", RPO),
    Fault("microbatches in the wrong order", "gapo_jax/train/microbatches.py",
          "joined = jax.lax.map(jax.checkpoint(function), split)\n"
          "    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape",
          "joined = jax.lax.map(jax.checkpoint(function), split)\n"
          "    return jax.tree.map(lambda leaf: leaf.reshape", GAE),
    Fault("rows cut one token short", "gapo_jax/train/buckets.py",
          "last_B + 1 - length - (total - x_BN.shape[1])",
          "last_B - length - (total - x_BN.shape[1])", RLOO),
    # The builders.
    Fault("policy's schedule sized for one round", BUILD,
          "policy_updates = config.rounds * ppo.epochs", "policy_updates = ppo.epochs", PLUS),
    Fault("critic's schedule sized for one round", BUILD,
          "critic_updates = config.rounds * ppo.critic_epochs",
          "critic_updates = ppo.critic_epochs", GAE),
    Fault("critic at the policy's rate", BUILD,
          "learning_rate(ppo.critic_optim, critic_updates)",
          "learning_rate(ppo.optim, critic_updates)", GAE),
    Fault("the discriminator's round rate ignored", BUILD,
          "warmup_then_rounds(disc.optim.learning_rate, disc.round_learning_rate, updates)",
          "warmup_then_rounds(disc.optim.learning_rate, disc.optim.learning_rate, updates)", GAE),
    Fault("warm-up counted in pairs", BUILD, "texts = 2 * num_pairs", "texts = num_pairs", GAE),
    Fault("dropout never on", BUILD, "dropout=settings.dropout > 0,", "dropout=False,", DROPOUT),
    Fault("table of words trained", "gapo_jax/train/optimizers.py",
          'return r"encoder/embed/word/|decoder/embed/" if config', 'return "none" if config', GAE),
    Fault("weight decay dropped", "gapo_jax/train/optimizers.py",
          "optax.add_decayed_weights(optim.weight_decay, decay_mask),",
          "optax.add_decayed_weights(0.0, decay_mask),", PLUS),
    Fault("weight decay of norms", "gapo_jax/train/optimizers.py",
          "optax.add_decayed_weights(optim.weight_decay, decay_mask),",
          "optax.add_decayed_weights(optim.weight_decay),", PLUS),
    Fault("warm-up of the rate dropped", "gapo_jax/train/optimizers.py",
          "    if not optim.warmup_steps:", "    if optim.warmup_steps:", PLUS),
    Fault("the KL coefficient starts at 0", BUILD,
          "kl_coef=jnp.float32(config.ppo.kl_coef)", "kl_coef=jnp.float32(0)", PLUS),
    Fault("the average starts at 0", BUILD,
          "disc_average=copy_tree(disc) if", "disc_average=None if", BASELINE),
    # The discriminator.
    Fault("replay buffer always empty", DISC + "update.py",
          "disc_average=average, replay=replay)", "disc_average=average)", GAE),
    Fault("replay never drawn", DISC + "update.py",
          "        rollout.generated,\n        state.replay,\n        seed",
          "        rollout.generated,\n        (),\n        seed", GAE),
    Fault("replay of the present round", DISC + "update.py",
          "        rollout.generated,\n        state.replay,\n        seed",
          "        rollout.generated,\n        rollout.generated,\n        seed", GAE),
    Fault("same pairs in every round", DISC + "update.py",
          "        seed=config.seed,\n        round_index=index,\n    )\n    discriminator",
          "        seed=config.seed,\n        round_index=0,\n    )\n    discriminator", GAE),
    Fault("class weights dropped", DISC + "batches.py",
          'config.balance_classes and config.loss == "bce"', "False", GAE),
    Fault("class weights by batch", DISC + "batches.py",
          "make_batch(tokenizer, texts[rows], weights_B[rows], config)",
          "make_batch(tokenizer, texts[rows], class_weights([t.target for t in texts[rows]], "
          "balance), config)", GAE),
    Fault("filler texts weigh", DISC + "batches.py",
          "weights_B = np.zeros(config.batch_size, np.float32)",
          "weights_B = np.ones(config.batch_size, np.float32)", GAE),
    Fault("accepted text unsmoothed", DISC + "update.py",
          "texts = round_texts(\n        settings,",
          "import dataclasses\n    texts = round_texts(\n"
          "        dataclasses.replace(settings, positive_label=1.0),", GAE),
    Fault("rejected text is 1", DISC + "batches.py",
          "LabelledText(*rejected, REJECTED, 0.0)", "LabelledText(*rejected, REJECTED, positive)",
          GAE),
    Fault("sides of a pair swapped", DISC + "batches.py",
          "accepted, rejected = pair.sides", "rejected, accepted = pair.sides", GAE),
    Fault("repeating text counts as verified", DISC + "batches.py",
          "all(verdict.strict) and repetition(verdict.response) <= config.max_repetition",
          "all(verdict.strict)", GAE),
    Fault("the average moves the wrong way", DISC + "update.py",
          "average, 1 - settings.ema_decay)", "average, settings.ema_decay)", BASELINE),
    Fault("the average keeps the start", DISC + "warmup.py",
          "average = None if state.disc_average is None else copy_tree(discriminator.params)",
          "average = state.disc_average", BASELINE),
    Fault("scores in the order of lengths", DISC + "scoring.py",
          "logits_B[rows] = np.asarray(batch_logits_B)[: len(rows)]",
          "logits_B[start : start + len(rows)] = np.asarray(batch_logits_B)[: len(rows)]", GAE),
    Fault("one dropout mask for all updates", DISC + "steps.py",
          "Stream.DROPOUT, state.step", "Stream.DROPOUT, 0", DROPOUT),
    # The resume.
    Fault("replay buffer not read back", "gapo_jax/train/restore.py",
          "state.replace(replay=replay, last_saved", "state.replace(last_saved", KILLED),
    Fault("replay buffer not saved", "gapo_jax/train/rounds.py",
          '"replay": replay_to_json(state.replay)', '"replay": []', KILLED),
    Fault("verdicts of replayed texts lost", DISC + "texts.py",
          "[dataclasses.asdict(text) for text in replay]",
          '[dataclasses.asdict(text) | {"verified": False} for text in replay]', KILLED),
    Fault("a continued run begins with the first round", "gapo_jax/train/rounds.py",
          "range(int(state.round), config.rounds)", "range(0, config.rounds)", KILLED),
    Fault("a continued run skips a round", "gapo_jax/train/rounds.py",
          "range(int(state.round), config.rounds)", "range(int(state.round) + 1, config.rounds)",
          KILLED),
    Fault("round not counted", "gapo_jax/train/rounds.py",
          "round=state.round + 1", "round=state.round", KILLED),
    Fault("lines of the killed round kept", "gapo_jax/train/metrics.py",
          'if record["step"] <= step]', "if True]", ("tests/train/test_metrics.py",)),
    Fault("lines of the last good round dropped", "gapo_jax/train/metrics.py",
          'if record["step"] <= step]', 'if record["step"] < step]',
          ("tests/train/test_metrics.py",)),
    # The data path.
    Fault("an order for all epochs", "gapo_jax/data/batching.py",
          "name, *counters, n, epoch, n=n)", "name, *counters, n, 0, n=n)",
          ("tests/data/test_batching.py",)),
    Fault("batches overlap", "gapo_jax/data/batching.py",
          "start, parts = step * batch_size, []", "start, parts = step, []",
          (OFFLINE, "-k", "dpo")),
    Fault("response in the prompt's segment", "gapo_jax/data/discriminator_text.py",
          "type_ids_BT[index, first_length : len(row)] = layout.segment",
          "type_ids_BT[index, first_length + 1 : len(row)] = layout.segment", GAE),
    Fault("cut-off texts get an end", "gapo_jax/train/offline/examples.py",
          "ends(responses, self.cut_off)", "ends(responses, ())",
          ("tests/train/offline/test_steps.py",)),
    Fault("no system turn in examples", "gapo_jax/train/offline/examples.py",
          "chat_prompt(tokenizer, side.prompt, system)",
          "chat_prompt(tokenizer, side.prompt, None)", (OFFLINE, "-k", "dpo")),
    Fault("no system turn in rollouts", ONLINE + "rollout.py",
          "system=system_text(config),\n        stop", "system=None,\n        stop", PLUS),
    Fault("keys of the batch, not of the row", "gapo_jax/rollout/generate.py",
          "tokens_AP[asked], mask_AP[asked], keys_B[rows], temperature",
          "tokens_AP[asked], mask_AP[asked], keys_B[rows % 4], temperature", PLUS),
    Fault("the same sampling keys in every round", ONLINE + "rollout.py",
          "Stream.ROLLOUT, index, attempt", "Stream.ROLLOUT, 0, attempt", PLUS),
    Fault("the same prompts in every round", ONLINE + "rollout.py",
          "step=index,", "step=0,", PLUS),
    Fault("a curriculum that starts with nothing", "gapo_jax/data/curriculum.py",
          "start + (1 - start) * done / share", "done / share",
          ("tests/data/test_curriculum.py",)),
    # Shared prompts.
    Fault("the same pairs' prompts in every round", DISC + "pair_prompts.py",
          "index * count + len(chosen)", "len(chosen)", SHARED),
    Fault("prompts of pairs that are not in use", DISC + "pair_prompts.py",
          "rows = [row for row in pool if row.prompt in in_use]", "rows = list(pool)", SHARED),
    Fault("cycles torn apart", DISC + "pair_prompts.py",
          "order = np.argsort(places_A, kind=\"stable\")[offset",
          "order = rng.permutation(len(rows))[offset", SHARED),
    Fault("real texts under other prompts than the replayed ones", DISC + "batches.py",
          "asked = [text.prompt for text in generated or fresh]",
          "asked = [text.prompt for text in fresh]", EVERYTHING),
    Fault("real texts all accepted", DISC + "batches.py",
          "else number % 2\n", "else 0\n", SHARED),
    Fault("real texts not in proportion", DISC + "batches.py",
          "slots = [prompt for prompt in names for _ in range(times[prompt])]",
          "slots = names", EVERYTHING),
    Fault("compared with real text of another prompt", DISC + "batches.py",
          "real_under.get(wanted) or by_prompt.get(wanted)", "by_prompt.get(wanted)", SHARED),
    # Comparisons, gate, penalty, curriculum.
    Fault("worse text first", DISC + "batches.py",
          "pairs.append((text, other) if good else (other, text))",
          "pairs.append((other, text) if good else (text, other))", MIX),
    Fault("gamma of R1 dropped", DISC + "steps.py",
          "total + gradient_penalty * slope", "total + slope", EVERYTHING),
    Fault("R1 on all texts", DISC + "steps.py",
          "batch.weights_B * (batch.classes_B == ACCEPTED)", "batch.weights_B", EVERYTHING),
    Fault("the gate doubles nothing", DISC + "update.py", "passes = 2", "passes = 1", EVERYTHING),
    Fault("the curriculum stands still", DISC + "update.py",
          "index / config.rounds", "0 * index / config.rounds", EVERYTHING),
    # Rates, decay, what is saved as good.
    Fault("a head's vector decays", "gapo_jax/train/optimizers.py",
          "|(^|/)head/out/", "", OPTIMIZERS),
    Fault("a rate of 0 without a warm-up", "gapo_jax/train/optimizers.py",
          "    if not updates:\n", "    if updates < 0:\n", OPTIMIZERS),
    Fault("IPO by sums", "gapo_jax/losses/offline.py",
          'reduce == "mean" or (reduce == "auto" and variant == "ipo")', 'reduce == "mean"',
          ("tests/train/offline/test_steps.py", "-k", "loss")),
    Fault("any growth is well", "gapo_jax/train/checks.py",
          "params > MOST_GROWTH * max", "params > 1e9 * max", CHECKS),
    Fault("moments are not looked at", "gapo_jax/train/checks.py",
          '("moments", moments)', '("moments", 0.0)', CHECKS),
    Fault("the discriminator is not looked at", "gapo_jax/train/checks.py",
          '"discriminator": "disc"}', '"discriminator": "none"}', CHECKS),
    Fault("saved without a look at the networks", "gapo_jax/train/rounds.py",
          '            check_networks(norms, state, f"round {index + 1}", rates)\n', "", STOPS),
    Fault("what left the reference stays the newest", "gapo_jax/train/rounds.py",
          'ctx.checkpointer.set_aside(index, "collapsed")', "pass", STOPS),
    Fault("anything may change after a stop", "gapo_jax/train/workdir.py",
          "stopped.is_file() and all(mended)", "stopped.is_file()", WORKDIR),
    Fault("two runs in one folder of checkpoints", "gapo_jax/train/workdir.py",
          "if owner != own:", "if owner != owner:", WORKDIR),
    Fault("no line of a lost save", "gapo_jax/train/history.py",
          '== ("save", saved)', '!= ("save", -1)', WORKDIR),
    Fault("missing rounds unnamed", "gapo_jax/train/history.py",
          "set(range(1, saved + 1)) - present", "set(range(1, 1)) - present", WORKDIR),
    Fault("checksums not compared", "gapo_jax/checkpoint.py",
          "if sums.get(key) != n]", "if sums.get(key) != sums.get(key)]",
          (*CHECKPOINT, "-k", "flipped or differs")),
    Fault("one checkpoint kept", "gapo_jax/checkpoint.py",
          "LatestN(self._keep)", "LatestN(1)", (*CHECKPOINT, "-k", "newest")),
    # Offline updates.
    Fault("offline scoring at the sampling temperature", "gapo_jax/train/offline/steps.py",
          "    spec = dataclasses.replace(spec, temperature=1.0)\n"
          "    step = functools.partial(offline_step", "    step = functools.partial(offline_step",
          (OFFLINE, "-k", "dpo")),
    Fault("SGPO's reference at the sampling temperature", "gapo_jax/train/offline/sgpo.py",
          "spec = dataclasses.replace(ctx.models.spec, temperature=1.0)", "spec = ctx.models.spec",
          (OFFLINE, "-k", "sgpo")),
    Fault("SGPO's reference is the start", "gapo_jax/train/offline/sgpo.py",
          "score(ctx.models.ref_params, state.policy.params, rows)",
          "score(ctx.models.ref_params, {k: ctx.models.ref_params[k] for k in ()}, rows)",
          (OFFLINE, "-k", "sgpo")),
    Fault("offline schedule sized for one round", BUILD,
          "optax.set_to_zero(), config.rounds * updates_per_round(config)",
          "optax.set_to_zero(), updates_per_round(config)", (OFFLINE, "-k", "dpo")),
    Fault("offline batches begin anew in every round", "gapo_jax/train/offline/loop.py",
          "index * ctx.updates_per_round", "0 * ctx.updates_per_round", (OFFLINE, "-k", "dpo")),
    Fault("rows are told apart by the wrong label", "gapo_jax/train/offline/row_arrays.py",
          '(numbers["rewards_B"] > 0.5)', '(numbers["rewards_B"] < 0.5)', (ROWS, "-k", "kto")),
    Fault("rows train on one token less", "gapo_jax/train/offline/row_arrays.py",
          "start + max(first, 1)", "start + max(first, 1) + 1", (ROWS, "-k", "right_edge")),
    Fault("held-out prompts are trained on", "gapo_jax/train/datasets/rows.py",
          "np.flatnonzero(part_of[group] == part)", "np.flatnonzero(part_of[group] <= part)",
          (ROWS, "-k", "split_by_prompt")),
    Fault("rows begin anew in every window", "gapo_jax/train/offline/row_batches.py",
          "step=window, n", "step=0, n", (ROWS, "-k", "once_an_epoch")),
    Fault("the worse side of held-out pairs preferred", "gapo_jax/train/row_evaluation.py",
          "order = float(np.mean(good_A > bad_A))", "order = float(np.mean(good_A < bad_A))",
          (ROWS, "-k", "held_out_rows_are_measured")),
)  # fmt: skip


def checked(fault: Fault, root: Path) -> str:
    """Return the file of a fault with the fault in it.

    Raises:
        SystemExit: what it replaces does not occur exactly once.
    """
    text = (root / fault.file).read_text()
    count = text.count(fault.old)
    if count != 1:
        raise SystemExit(
            f"{fault.name}: {fault.old!r} occurs {count} times in {fault.file}; put it anew"
        )
    return text.replace(fault.old, fault.new)


def caught(fault: Fault, root: Path) -> tuple[bool, str]:
    """Return whether the nearest tests fail with a fault in the tree, and why."""
    path = root / fault.file
    whole, broken = path.read_text(), checked(fault, root)
    path.write_text(broken)
    try:
        status, printed = outcome(fault.tests, root)
    finally:
        path.write_text(whole)
    if status not in (PASSED, FAILED, NOT_COLLECTED):
        raise SystemExit(f"{fault.name}: the tests did not run:\n{printed}")
    errors = [line for line in printed.splitlines() if "Error" in line or "assert" in line]
    return status == FAILED, errors[0][-160:] if errors else ""


def outcome(tests: tuple[str, ...], root: Path) -> tuple[int, str]:
    """Return the exit status of pytest with these arguments in the tree, and what it printed."""
    log = root / "pytest.log"
    child = os.fork()
    if not child:
        _run_tests(tests, root, log)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text()


def check_clean(tests: tuple[str, ...], root: Path) -> None:
    """Run tests in the tree without a fault.

    Raises:
        SystemExit: they do not pass, so a failure would say nothing about a fault.
    """
    status, printed = outcome(tests, root)
    if status != PASSED:
        raise SystemExit(f"{' '.join(tests)}: fails without any fault:\n{printed}")


def _run_tests(arguments: tuple[str, ...], root: Path, log: Path) -> NoReturn:
    """Run tests of the copy in this process, print to a file, and end the process."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(root)
    here = (str(ROOT), str(ROOT / "tests"))
    sys.path[:] = [str(root), *(path for path in sys.path if path not in here)]
    os.environ["PYTHONPATH"] = str(root)
    sys.dont_write_bytecode = True
    options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--tb=line"]
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    status = pytest.ExitCode.INTERNAL_ERROR
    try:
        status = pytest.main([*options, *arguments])
    except BaseException:
        traceback.print_exc()
    finally:  # never back into the parent's code, which would clean up behind itself
        os._exit(int(status))


def main(words: list[str]) -> int:
    """Try the faults that the words choose; return the exit status."""
    only_check, only_list = "--check" in words, "--list" in words
    words = [word for word in words if not word.startswith("--")]
    for fault in FAULTS:
        checked(fault, ROOT)
    if only_check:
        print(f"{len(FAULTS)} faults can be put in")
        return 0
    if only_list:
        print(*(f"{fault.file}: {fault.name}" for fault in FAULTS), sep="\n")
        return 0
    chosen = [
        fault for fault in FAULTS
        if not words or any(word in fault.name or word in fault.file for word in words)
    ]  # fmt: skip
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        leave_out = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build")
        shutil.copytree(ROOT, root, ignore=leave_out)
        for tests in dict.fromkeys(fault.tests for fault in chosen):
            check_clean(tests, root)
        print(f"{len(chosen)} faults; their tests pass without any", flush=True)
        for fault in chosen:
            start = time.perf_counter()
            found, why = caught(fault, root)
            verdict = "caught" if found else "SURVIVED"
            print(
                f"{verdict:8} {time.perf_counter() - start:4.0f} s  {fault.name}  {why}", flush=True
            )
            if not found:
                survivors.append(fault.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    for name in survivors:
        print(f"survived: {name}: {EXPLAINED.get(name, 'no reason is known')}")
    return int(sum(name not in EXPLAINED for name in survivors) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
