"""What sections must agree on, among each other and with the method, before anything slow."""

from __future__ import annotations

from gapo_jax.config.schema import Config
from gapo_jax.methods import (
    asks_discriminator,
    estimator,
    method_of,
    refuse_buckets,
    refuse_curriculum,
    unused_options,
)
from gapo_jax.section import check_fields, sections

# Above this the clip of a geometric mean over tokens never acts (GSPO takes 3e-4 and 4e-4).
_WIDEST_GSPO_CLIP = 0.1


def check(config: Config) -> None:
    """Check a whole configuration.

    Options that the method does not read must be valid one by one, but need not agree.

    Raises:
        ValueError: names the key, what it holds and what would work.
    """
    for path, section in sections(config):
        check_fields(section, path)
    method = method_of(config)
    _check_sampling(config)
    _check_own_tasks(config)
    _check_trained_parts(config)
    if method.loop == "online":
        _check_online(config)
    else:
        _check_offline(config)
    method.check(config)
    unused = {f"config.{name}" for name in unused_options(config)}
    for path, section in sections(config):
        if path not in unused:
            section.check()


def _check_sampling(config: Config) -> None:
    rows, samples = config.sampling.batch_size, config.ppo.samples_per_prompt
    if rows % samples:
        raise ValueError(
            f"config.sampling.batch_size={rows} must be a multiple of ppo.samples_per_prompt="
            f"{samples}: samples of a prompt are decoded together"
        )
    if rows % config.eval.samples_per_prompt:
        raise ValueError(
            f"config.sampling.batch_size={rows} must be a multiple of "
            f"eval.samples_per_prompt={config.eval.samples_per_prompt}"
        )
    if config.reward.combine == "normalise_then_sum" and samples < 2:
        raise ValueError(
            "config.reward.combine='normalise_then_sum' normalises among the samples of a prompt; "
            f"set config.ppo.samples_per_prompt to 2 or more (got {samples}) or combine='sum'"
        )
    if config.reward.standardise == "group" and samples < 2:
        raise ValueError(
            "config.reward.standardise='group' needs at least 2 samples of a prompt; set "
            f"config.ppo.samples_per_prompt (got {samples}) or 'running'"
        )


def _check_own_tasks(config: Config) -> None:
    for name in ("development_prompts", "trip_wires"):
        if config.data.source and getattr(config.eval, name):
            raise ValueError(
                f"config.eval.{name}={getattr(config.eval, name)} makes prompts of our own tasks, "
                f"but config.data.source={config.data.source!r} brings others; leave one of them "
                "out"
            )


def _check_trained_parts(config: Config) -> None:
    for key in ("freeze", "train_embeddings"):
        if config.lora.rank and getattr(config.model, key):
            raise ValueError(
                f"config.lora.rank={config.lora.rank} trains adapters and nothing else, so "
                f"config.model.{key}={getattr(config.model, key)!r} has no meaning; choose what is "
                "adapted by config.lora.targets, or set config.lora.rank=0"
            )


def _check_online(config: Config) -> None:
    _check_estimator(config)
    _check_grpo(config)
    if config.reward.overlong_tokens > config.sampling.max_new_tokens:
        raise ValueError(
            f"config.reward.overlong_tokens={config.reward.overlong_tokens} is more than a "
            "response can have (config.sampling.max_new_tokens="
            f"{config.sampling.max_new_tokens}); lower it"
        )
    if not asks_discriminator(config):
        asked = config.reward.asked
        refuse_curriculum(
            config, f"no discriminator learns from pairs where config.reward asks {asked} only"
        )


def _check_estimator(config: Config) -> None:
    ppo, own, chosen = config.ppo, method_of(config).estimator, estimator(config)
    group = ppo.group_size
    if own and ppo.advantage not in ("gae", own):
        raise ValueError(
            f"config.ppo.advantage={ppo.advantage!r} is for config.method='gapo', but the method "
            f"is {config.method!r}, whose estimator is {own!r}; change one of the two"
        )
    grouped = chosen in ("rloo", "grpo", "rpo")
    if (grouped or (chosen == "reinforce_pp" and ppo.group_baseline)) and group < 2:
        raise ValueError(
            f"{chosen} compares the samples of one prompt, and one sample has nothing to be "
            f"compared with: set config.ppo.samples_per_prompt to 2 or more (got {group}), or "
            "take config.method='reinforce_pp' or 'ppo', which work with one"
        )
    if chosen == "rpo" and ppo.minibatch_size % group:
        raise ValueError(
            f"config.ppo.minibatch_size={ppo.minibatch_size} must be a multiple of {group}, the "
            "samples of a prompt that are learned from: rpo compares them within a minibatch"
        )
    if chosen == "rpo" and config.rpo.distance == "sq" and group > 2:
        raise ValueError(
            f"config.rpo.distance='sq' is for 2 responses, but {group} samples of a prompt are "
            "learned from; its form for more of them is config.rpo.distance='sqloo'"
        )
    if chosen != "reinforce_pp" and ppo.group_baseline:
        raise ValueError(
            "config.ppo.group_baseline=True is a form of reinforce_pp, but the estimator is "
            f"{chosen!r}; set it to False, or take config.method='reinforce_pp'"
        )


def _check_grpo(config: Config) -> None:
    grpo, ppo, chosen = config.grpo, config.ppo, estimator(config)
    if chosen != "grpo":
        plain = vars(type(grpo)())
        changed = [name for name, value in plain.items() if vars(grpo)[name] != value]
        if changed:
            raise ValueError(
                f"config.grpo.{changed[0]}={vars(grpo)[changed[0]]!r} is an option of grpo, but "
                f"the estimator is {chosen!r}; take config.method='grpo' (or, with gapo, "
                "config.ppo.advantage='grpo')"
            )
        return
    if grpo.variant == "gspo" and max(ppo.clip_low, ppo.clip_high) > _WIDEST_GSPO_CLIP:
        raise ValueError(
            "config.grpo.variant='gspo' clips the geometric mean of a response's ratios, so that "
            f"config.ppo.clip_low={ppo.clip_low} and clip_high={ppo.clip_high} would never act; "
            "the paper's are 3e-4 and 4e-4"
        )
    if grpo.dynamic_sampling and config.reward.asked != ("verifier",):
        raise ValueError(
            "config.grpo.dynamic_sampling replaces groups whose rule rewards are all equal, but "
            f"the sources {config.reward.asked} of config.reward give them unequal rewards all the "
            "same; set source='verifier' or dynamic_sampling=False"
        )


def _check_offline(config: Config) -> None:
    offline, method = config.offline, method_of(config)
    if offline.batch_size % offline.accumulate:
        raise ValueError(
            f"config.offline.accumulate={offline.accumulate} must divide "
            f"config.offline.batch_size={offline.batch_size}"
        )
    made = not config.data.source  # what a source gives is counted when it is read
    if made and method.trains == "policy" and offline.batch_size > config.data.pairs:
        raise ValueError(
            f"config.offline.batch_size={offline.batch_size} asks {method.name} for more examples "
            f"than config.data.pairs={config.data.pairs} gives; lower the one or raise the other"
        )
    if offline.sft_weight and not method.pairwise:
        raise ValueError(
            f"config.offline.sft_weight={offline.sft_weight} adds the chosen side's likelihood to "
            f"a loss that compares sides, but config.method={method.name!r}; set it to 0"
        )
    if config.data.curriculum:
        refuse_buckets(config, "config.data.curriculum orders the examples in another way")
