"""Preferential prompts: one response, a prompt that it satisfies and one that it violates.

GAPO (arXiv 2503.20194) section 3.2. From a response R and constraints C that it satisfies:

* modify: one constraint becomes a near miss that R violates; a type without arguments gives way
  to a related type that R violates.
* insert: a constraint that R violates is added.
* polarity: include becomes avoid of the same words, or the reverse. Without such pairs a
  discriminator reads "do not use X" as "X is the topic", and a policy trained on its score obeys
  forbidden words less often.

Every pair is verified before it is returned (`verify_pair`, Eq. 3 and 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gapo_jax.constraints.base import shuffled
from gapo_jax.constraints.ifeval_keywords import polarity_twin
from gapo_jax.constraints.registry import conflict, get, modify, trainable, types
from gapo_jax.constraints.template import PromptStyle, draw_style, pick, render, styles_of
from gapo_jax.records import Constraint, PreferentialPair

KINDS = ("modify", "insert", "polarity")
_WORD_FIELDS = ("keyword", "keyword1", "keyword2", "first_word", "last_word")
_DRAWS = 4  # tries at an instance that names no word of another constraint


def holds(constraint: Constraint, response: str) -> bool:
    """Return the strict official verdict on one constraint: L(R, C_i) of Eq. 1."""
    return get(constraint.id).check(constraint, response)


def verify_pair(pair: PreferentialPair) -> None:
    """Check a pair against its definition: GAPO (arXiv 2503.20194), section 3.2, Eq. 3 and 4.

    Every pair passes through here, whether made by `make_pair`, in cycles or by mining.

    Raises:
      ValueError: an accepted constraint is violated, no rejected one is (Eq. 4), or the two sides
        differ by more than the edit: one constraint more (`insert`), one changed (`modify`,
        `polarity`), some exchanged for others (`replace`).
    """
    broken = [c.id for c in pair.accepted if not holds(c, pair.response)]
    if broken:
        raise ValueError(
            f"accepted prompt: expected constraints that all hold, got violated {broken}"
        )
    if all(holds(c, pair.response) for c in pair.rejected):
        raise ValueError("rejected prompt: expected a violated constraint (Eq. 4), got none")
    # What the two sides share. Everything else has to be explained by the edit, or the pair would
    # teach the discriminator two things at once.
    kept = [c for c in pair.accepted if c in pair.rejected]
    lost = len(pair.accepted) - len(kept)
    added = len(pair.rejected) - len(kept)
    if pair.edit == "replace":
        fits = lost >= 1 and added >= 1
    else:
        fits = (lost, added) == ((0, 1) if pair.edit == "insert" else (1, 1))
    if not fits:
        raise ValueError(
            f"{pair.edit} pair: expected one edited constraint, got {lost} lost and {added} added"
        )


def difficulty(pair: PreferentialPair) -> float:
    """Return how near a miss the rejected prompt is, from 0 to 1 (the nearest).

    One minus the largest shortfall (`ConstraintType.shortfall`) of the rejected constraints: 4
    bullets asked of a response with 3 give 0.75, 10 bullets 0.3; a constraint without degrees,
    such as a title, gives 0. A curriculum goes from low to high.
    """
    # The most violated constraint decides: one gross violation makes a pair easy, however near the
    # others come.
    gaps = [
        get(c.id).shortfall(c, pair.response) for c in pair.rejected if not holds(c, pair.response)
    ]
    return 1.0 - max(gaps, default=1.0)


def _words(constraint: Constraint) -> set[str]:
    asked = [constraint.kwargs.get(field, "") for field in _WORD_FIELDS]
    for field in ("keywords", "forbidden_words"):
        asked += constraint.kwargs.get(field, ())
    return {word.lower() for word in asked if word}


def _goes_with(new: Constraint, kept: Sequence[Constraint]) -> bool:
    """Return whether a constraint may be added to others: no types that conflict, and no word that
    is part of another's. Asking for a forbidden word would make the rejected prompt impossible
    instead of violated."""
    return not any(
        conflict(new.id, other.id)
        or any(a in b or b in a for a in _words(new) for b in _words(other))
        for other in kept
    )


def _violated(
    present: Sequence[Constraint],
    kept: Sequence[Constraint],
    response: str,
    rng: np.random.Generator,
    words: Sequence[str],
    allowed: Sequence[str],
    task: str,
) -> Constraint | None:
    """Return an instance, violated by the response, of an allowed type that is not present and goes
    with the constraints that are kept."""
    ids = {constraint.id for constraint in present}
    # Random order, and not the easiest type first: types that are violated by nearly any text would
    # make up most of the rejected prompts.
    for type_id in shuffled(rng, list(allowed)):
        if type_id in ids or any(conflict(type_id, other.id) for other in kept):
            continue
        for _ in range(_DRAWS):
            constraint = trainable(type_id).sample(
                rng, response=response, satisfied=False, words=words, task=task
            )
            if constraint is None:
                break
            if _goes_with(constraint, kept):
                return constraint
    return None


def _modified(constraints, index, response, rng, words, allowed, task) -> Constraint | None:
    """Return a near miss of one constraint, violated by the response, that goes with the others."""
    old = constraints[index]
    others = tuple(c for i, c in enumerate(constraints) if i != index)
    free = [t for t in allowed if not any(conflict(t, other.id) for other in others)]
    # Another draw helps only where a word of another constraint is in the way.
    for _ in range(_DRAWS):
        new = modify(old, response, rng, words, task=task, types=free)
        if new is None or _goes_with(new, others):
            break
        new = None
    # A related type or any other, half and half, so that every type occurs among the rejected.
    if not old.kwargs and (new is None or rng.random() < 0.5):
        new = _violated(constraints, others, response, rng, words, allowed, task) or new
    return new


def _twin(constraints, index, response, allowed) -> Constraint | None:
    old = constraints[index]
    others = tuple(c for i, c in enumerate(constraints) if i != index)
    twin = polarity_twin(old.id, dict(old.kwargs))
    if twin is None or twin[0] not in allowed:
        return None
    new = Constraint(*twin)
    return None if holds(new, response) or not _goes_with(new, others) else new


def _edited_pair(kind, task, constraints, response, rng, words, phrasing, allowed, places):
    """Return a pair whose edit replaces one constraint (modify, polarity), or None."""
    for index in shuffled(rng, places):
        if kind == "polarity":
            new = _twin(constraints, index, response, allowed)
        else:
            new = _modified(constraints, index, response, rng, words, allowed, task)
        if new is None or new in constraints:
            continue
        style = draw_style(constraints, rng, phrasing)
        other = style
        # Opposite types number their phrasings alike; any other type draws a phrasing of its own.
        if new.id != constraints[index].id and kind != "polarity":
            other = style.with_style(index, pick(rng, styles_of(new.id, phrasing)))
        rejected = constraints[:index] + (new,) + constraints[index + 1 :]
        # The edited type names the pair, not the type that replaces it: counts by type say which
        # constraints were edited, and the data is balanced over those counts.
        edited = constraints[index].id
        return _pair(task, response, constraints, rejected, style, other, kind, edited)
    return None


def _inserted_pair(task, constraints, response, rng, words, phrasing, allowed):
    """Return a pair whose rejected prompt has one constraint more, or None."""
    new = _violated(constraints, constraints, response, rng, words, allowed, task)
    if new is None:
        return None
    rejected = constraints + (new,)
    # Drawn for the longer prompt and cut down for the shorter one, so that both share everything
    # else.
    style = draw_style(rejected, rng, phrasing)
    plain = style.without(len(constraints))
    return _pair(task, response, constraints, rejected, plain, style, "insert", new.id)


def _pair(
    task: str,
    response: str,
    accepted: tuple[Constraint, ...],
    rejected: tuple[Constraint, ...],
    style_accepted: PromptStyle,
    style_rejected: PromptStyle,
    edit: str,
    type_id: str,
) -> PreferentialPair:
    return PreferentialPair(
        task=task,
        response=response,
        accepted=accepted,
        rejected=rejected,
        prompt_accepted=render(task, accepted, style_accepted),
        prompt_rejected=render(task, rejected, style_rejected),
        edit=edit,
        type=type_id,
    )


def _check_request(kind: str | None, accepted: Sequence[Constraint], response: str) -> None:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS} or None, got {kind!r}")
    broken = [c.id for c in accepted if not holds(c, response)]
    if broken:
        raise ValueError(
            f"make_pair: expected constraints that the response satisfies, got violated {broken};"
            " take them from sample(response=..., satisfied=True)"
        )


def make_pair(
    task: str,
    constraints: Sequence[Constraint],
    response: str,
    rng: np.random.Generator,
    *,
    kind: str | None = None,
    words: Sequence[str] = (),
    phrasing: str = "train",
    type_ids: Sequence[str] | None = None,
    target: str | None = None,
) -> PreferentialPair | None:
    """Make one verified preferential pair from a response and constraints that it satisfies.

    The two prompts share order, wordings, layout and connectives except for the edited constraint.
    `type` of the pair is the accepted constraint that was edited, or the inserted one.

    Args:
      task: T.
      constraints: C; all must hold for the response. Empty leaves only `insert`.
      response: R.
      rng: numpy Generator.
      kind: "modify", "insert", "polarity", or None for any that is possible, in random order.
        "polarity" needs a constraint with an opposite in C (words to include, avoid or count).
      words: candidate keywords from other responses to the same task.
      phrasing: "train" or "heldout".
      type_ids: the types that the rejected prompt may hold; all by default.
      target: id of the type to edit (modify, polarity) or to insert; any by default.

    Returns:
      The pair, or None where no such edit exists for this response.

    Raises:
      ValueError: unknown kind or type, or a constraint that the response violates.
    """
    accepted = tuple(constraints)
    allowed = tuple(types() if type_ids is None else (get(item).id for item in type_ids))
    _check_request(kind, accepted, response)
    for chosen in (kind,) if kind else shuffled(rng, KINDS):
        if chosen == "insert":
            inserted = allowed if target is None else (get(target).id,)
            pair = _inserted_pair(task, accepted, response, rng, words, phrasing, inserted)
        else:
            places = [i for i, c in enumerate(accepted) if target in (None, c.id)]
            pair = _edited_pair(
                chosen, task, accepted, response, rng, words, phrasing, allowed, places
            )
        if pair is not None:
            verify_pair(pair)
            return pair
    return None
