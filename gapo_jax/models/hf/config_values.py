"""Checks of the values in a `config.json`, for the translations of all families."""

from __future__ import annotations

from typing import Any

from gapo_jax.models.hf.architecture import Json

# The smallest and the largest value of every size, well beyond any model. What is built and
# compared with the file grows with them, so a damaged number must not get that far.
_BOUNDS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), (1, 2**12)),
    **dict.fromkeys(("hidden_size", "n_embd", "head_dim"), (1, 2**20)),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), (1, 2**16)),
    **dict.fromkeys(("intermediate_size", "n_inner"), (1, 2**24)),
    "vocab_size": (1, 2**28),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), (1, 2**31 - 1)),
    **dict.fromkeys(("sliding_window", "local_attention"), (0, 2**31 - 1)),
    **dict.fromkeys(("type_vocab_size", "position_buckets"), (0, 2**20)),
}


def check_sizes(raw: Json) -> None:
    """Raise ValueError unless every size in `raw` is an integer within sane bounds, or None."""
    for key, (smallest, largest) in _BOUNDS.items():
        value = raw.get(key)
        if value is None:
            continue
        if type(value) is not int or not smallest <= value <= largest:
            raise ValueError(
                f"Wanted an integer from {smallest} to {largest} as {key}, got {value!r}. The "
                "file is damaged: download it again."
            )


def accept_only(raw: Json, key: str, *supported: object) -> None:
    """Raise ValueError unless `raw[key]` is absent, None or one of the supported values."""
    value = raw.get(key)
    if value is not None and value not in supported:
        raise ValueError(
            f"Wanted {key} in {list(supported)} in config.json, got {value!r}, which this "
            f"{raw.get('model_type')} network does not have. Choose a model without it."
        )


def required(raw: Json, key: str) -> Any:
    """Return `raw[key]`.

    Raises:
        ValueError: it is absent or None.
    """
    if raw.get(key) is None:
        raise ValueError(
            f"Wanted the key {key!r} in config.json, got none. Download the model's config again."
        )
    return raw[key]


def token_ids(raw: Json, key: str) -> tuple[int, ...]:
    """Return the token ids under `key`, where one id, a list of ids or nothing may stand.

    Raises:
        ValueError: something else stands there.
    """
    value = raw.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(one) is not int for one in ids):
        raise ValueError(
            f"Wanted a token id or a list of them as {key}, got {value!r}. Download the model's "
            "config again."
        )
    return tuple(ids)
