"""Forward passes of generator, reference and critic over a rollout.

The layers below `first_trainable_layer` are frozen and therefore the same in policy and reference:
their output (`frozen_hidden_BTD`) is computed once a round and shared by the reference, the old
policy, every epoch of the policy update and a decoder critic. All passes use the response positions
only.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gapo_jax.losses import chunked_logprobs
from gapo_jax.models import (
    Decoder,
    DecoderConfig,
    LayerStack,
    ScalarHead,
    positions_of,
    unembedding,
)
from gapo_jax.sharding import ONE_DEVICE, Placement
from gapo_jax.train.state import ENDS, overlay
from gapo_jax.types import Params, Rollout

CRITICS = ("reference", "policy", "decoder")


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """The static facts that a compiled step depends on.

    `first_trainable_layer` is the lowest trained layer, `temperature` that of sampling (log-probs
    are scored at it), `chunk` the tokens whose logits exist at one time, `critic` one of CRITICS,
    or "none", `unroll` the trained layers that one turn of the loop over them holds, and `place`
    says where its arrays lie.
    """

    config: DecoderConfig
    first_trainable_layer: int
    temperature: float
    chunk: int
    critic: str
    critic_hidden: int
    unroll: int = 1
    place: Placement = ONE_DEVICE

    @property
    def head(self) -> ScalarHead:
        """The critic's head."""
        return ScalarHead(hidden_dim=self.critic_hidden or None)


class RolloutLogprobs(flax.struct.PyTreeNode):
    """What one pass over a rollout gives, before the round's updates.

    Log-probs and values are float32 [B, R]. `frozen_hidden_BTD` is the output of the frozen layers,
    None where nothing is frozen; `features_BRD` is what the critic's head reads. Features and
    values are None without a critic.
    """

    frozen_hidden_BTD: jax.Array | None
    features_BRD: jax.Array | None
    old_logprobs_BR: jax.Array
    ref_logprobs_BR: jax.Array
    values_BR: jax.Array | None


def _apply(module: nn.Module, params: Params, *args: Any, method: str = "__call__") -> Any:
    return module.apply({"params": params}, *args, method=method)


def frozen_hidden(
    spec: PolicySpec, ref_params: Params, tokens_BT: Int[Array, "B T"], mask_BT: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Return the output [B, T, D] of embedding and frozen layers."""
    positions_BT = positions_of(mask_BT)
    decoder = Decoder(spec.config)
    hidden_BTD = _apply(decoder, ref_params, tokens_BT, positions_BT, method="embed_tokens")
    # The table is split along D over the axis that should split the rows from here on.
    hidden_BTD = spec.place.keep_rows(hidden_BTD)
    if not spec.first_trainable_layer:
        return hidden_BTD
    frozen = jax.tree.map(lambda leaf: leaf[: spec.first_trainable_layer], ref_params["layers"])
    stack = LayerStack(spec.config.part(0, spec.first_trainable_layer))
    return _apply(stack, frozen, hidden_BTD, mask_BT, positions_BT)


def upper_hidden(
    spec: PolicySpec,
    params: Params,
    frozen_hidden_BTD: Float[Array, "B T D"],
    mask_BT: Int[Array, "B T"],
    length: int,
) -> Float[Array, "B R D"]:
    """Return the final hidden states [B, R, D] that predict the last `length` columns.

    `params` holds `layers` (those from `spec.first_trainable_layer` on), `final_norm` and, if the
    layers are adapted, `lora`.
    """
    upper = spec.config.part(spec.first_trainable_layer, spec.config.num_layers)
    stack = LayerStack(dataclasses.replace(upper, scan_unroll=spec.unroll))
    variables = {"params": params["layers"]}
    if "lora" in params:
        variables["lora"] = params["lora"].collection()
    hidden_BTD: Any = stack.apply(variables, frozen_hidden_BTD, mask_BT, positions_of(mask_BT))
    hidden_BRD = hidden_BTD[:, -length - 1 : -1]
    norm = {"final_norm": params["final_norm"]}
    return _apply(Decoder(spec.config), norm, hidden_BRD, method="final")


def response_hidden(
    spec: PolicySpec,
    ref_params: Params,
    trained: Params,
    rollout: Rollout,
    frozen_hidden_BTD: Float[Array, "B T D"] | None = None,
) -> Float[Array, "B R D"]:
    """Return the final hidden states [B, R, D] of the policy on a rollout."""
    policy = policy_part(spec, ref_params, trained)
    if "embed" in policy:
        frozen_hidden_BTD = frozen_hidden(spec, policy, rollout.tokens_BT, rollout.mask_BT)
    elif frozen_hidden_BTD is None:
        frozen_hidden_BTD = frozen_hidden(spec, ref_params, rollout.tokens_BT, rollout.mask_BT)
    length = rollout.response_mask_BR.shape[1]
    return upper_hidden(spec, policy, frozen_hidden_BTD, rollout.mask_BT, length)


def response_logprobs(
    spec: PolicySpec,
    ref_params: Params,
    trained: Params,
    rollout: Rollout,
    frozen_hidden_BTD: Float[Array, "B T D"] | None = None,
    with_entropy: bool = False,
    with_accuracy: bool = False,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"] | None, Float[Array, "B R D"]]:
    """Return (log-probs [B, R], entropy or accuracy [B, R] or None, hidden [B, R, D]) of the
    responses; the former two are 0 in padding."""
    hidden_BRD = response_hidden(spec, ref_params, trained, rollout, frozen_hidden_BTD)
    policy = policy_part(spec, ref_params, trained)
    kernel_DV = unembedding(policy if "embed" in policy else ref_params)
    # Gathered once, in the dtype of the product, not in every chunk of it.
    kernel_DV = spec.place.keep_columns(kernel_DV, hidden_BRD.dtype)
    real_BR = rollout.response_mask_BR
    targets_BR = rollout.tokens_BT[:, -real_BR.shape[1] :]
    logprobs_BR, beside_BR = chunked_logprobs(
        hidden_BRD,
        kernel_DV,
        targets_BR,
        temperature=spec.temperature,
        chunk_tokens=spec.chunk,
        with_entropy=with_entropy,
        with_accuracy=with_accuracy,
        tied=spec.config.tie_embeddings,
        softcap=spec.config.final_softcap,
        # With the mask, real tokens are brought together; between devices that costs more than the
        # padding that it saves.
        mask_BT=None if spec.place.spread else real_BR,
    )
    logprobs_BR, beside_BR = jax.tree.map(
        lambda x_BR: jnp.where(real_BR != 0, x_BR, 0.0), (logprobs_BR, beside_BR)
    )
    return logprobs_BR, beside_BR, hidden_BRD


def policy_part(spec: PolicySpec, ref_params: Params, trained: Params) -> Params:
    """Return the trained parameters with the frozen ones of the same layers around them: those that
    `config.model.freeze` holds, or with adapters (`lora`) all of the reference's."""
    part = dict(reference_part(spec, ref_params))
    if any(name in trained for name in ENDS):
        part |= {name: ref_params[name] for name in ENDS if name in ref_params}
    return overlay(part, trained)


def reference_part(spec: PolicySpec, ref_params: Params) -> Params:
    """Return the reference's counterpart of the trained parameters."""
    layers = jax.tree.map(lambda leaf: leaf[spec.first_trainable_layer :], ref_params["layers"])
    return {"layers": layers, "final_norm": ref_params["final_norm"]}


def critic_values(
    spec: PolicySpec,
    critic: Params,
    rollout: Rollout,
    features_BRD: Float[Array, "B R D"] | None = None,
    frozen_hidden_BTD: Float[Array, "B T D"] | None = None,
) -> Float[Array, "B R"]:
    """Return values [B, R] float32: V of the prefix that ends just before each response token.

    Causal in every form: the hidden state that predicts token r has seen the prompt and the
    response tokens before r, nothing else (the reference release used a bidirectional encoder,
    which sees the future and so is no baseline).

    Why `reference` is the default: on the samples of a quickstart run (48 a round, 10 rounds, each
    critic updated on a round after predicting it) the mean explained variance of the reward in the
    last five rounds was .02 with the reference's hidden states, .03 with the policy's and .01 with
    a decoder of its own (10 layers), at 0.2, 0.2 and 13 seconds of updates a round on 2 cores.
    None is worth more than another: rewards are normalised among the samples of a prompt, so
    little is left that a prefix could foretell. The reference's hidden states cost nothing (the
    KL pass computes them) and, unlike the policy's, do not move under the head.
    """
    if spec.critic == "decoder":
        assert frozen_hidden_BTD is not None, "a decoder critic reads the frozen layers' output"
        length = rollout.response_mask_BR.shape[1]
        features_BRD = upper_hidden(
            spec, critic["trunk"], frozen_hidden_BTD, rollout.mask_BT, length
        )
    return _apply(spec.head, critic["head"], features_BRD)


def init_critic(spec: PolicySpec, ref_params: Params, key: jax.Array) -> Params:
    """Return fresh critic parameters; a decoder critic starts from the generator's layers."""
    features = jnp.zeros((1, 1, spec.config.d_model), jnp.float32)
    critic = {"head": spec.head.init(key, features)["params"]}
    if spec.critic == "decoder":
        critic["trunk"] = jax.tree.map(
            lambda leaf: jnp.array(leaf, copy=True), reference_part(spec, ref_params)
        )
    return critic


class PolicyNetworks(NamedTuple):
    """The parameters that score a rollout: the reference's, those that are trained of the policy,
    and the critic's, None for a method without one."""

    ref_params: Params
    policy: Params
    critic: Params | None


def score_rollout(
    networks: PolicyNetworks, rollout: Rollout, *, spec: PolicySpec
) -> RolloutLogprobs:
    """Score a rollout with reference, old policy and critic (if any) in one pass over shared
    layers.

    Old log-probs come from the training forward, not from the sampler (design, section 8).
    """
    ref_params, critic = networks.ref_params, networks.critic
    frozen_hidden_BTD = frozen_hidden(spec, ref_params, rollout.tokens_BT, rollout.mask_BT)
    reference = reference_part(spec, ref_params)
    ref_logprobs_BR, _, ref_hidden_BRD = response_logprobs(
        spec, ref_params, reference, rollout, frozen_hidden_BTD
    )
    old_logprobs_BR, _, old_hidden_BRD = response_logprobs(
        spec, ref_params, networks.policy, rollout, frozen_hidden_BTD
    )
    features_BRD = {"reference": ref_hidden_BRD, "policy": old_hidden_BRD}.get(spec.critic)
    if features_BRD is not None:
        features_BRD = features_BRD.astype(jnp.float32)
    values_BR = None
    if critic is not None:
        values_BR = critic_values(spec, critic, rollout, features_BRD, frozen_hidden_BTD)
    keep_frozen = spec.first_trainable_layer > 0 or spec.critic == "decoder"
    return RolloutLogprobs(
        frozen_hidden_BTD=frozen_hidden_BTD if keep_frozen else None,
        features_BRD=features_BRD,
        old_logprobs_BR=old_logprobs_BR,
        ref_logprobs_BR=ref_logprobs_BR,
        values_BR=values_BR,
    )
