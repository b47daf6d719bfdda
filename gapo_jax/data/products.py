"""The product description set, rebuilt openly: describe a product by all given facts and no others.

The paper's set is withheld (GAPO, arXiv 2503.20194, appendix A); this one has its two constraints,
`product:states_facts` and `product:no_other_facts`, over a catalogue of our own (`products.txt`).
Reference descriptions vary in order, openings, sentence forms and connectives. A rejected prompt
changes a fact (the description states another value), adds one (it states none) or takes one away
(it states more than is given); each pair is proven by the verifiers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gapo_jax import constraints
from gapo_jax.constraints.base import pick, shuffled
from gapo_jax.constraints.product_checks import tokens
from gapo_jax.constraints.template import compose_prompt
from gapo_jax.rng import Stream, stream
from gapo_jax.types import Constraint, PreferentialPair

EDITS = ("change", "add", "remove")
_STATES, _OTHERS = "product:states_facts", "product:no_other_facts"
_TASKS = (
    "Write a product description of a {name}.",
    "Describe this {name} for an online shop.",
    "Write a short text that sells this {name}.",
    "Introduce this {name} to customers.",
    "Tell a buyer what this {name} is like.",
)
_OPENINGS = (
    "Meet your new {name}.",
    "This {name} is made for every day.",
    "Looking for a {name} that simply does its work?",
    "Here comes a {name} to rely on.",
    "A {name} you will enjoy for a long time.",
    "Some things just belong in a home, and this {name} is one of them.",
)
_SENTENCES = (
    "Its {property} is {value}.",
    "For the {property} you get {value}.",
    "{Value}: that is the {property}.",
    "The {property} ({value}) was chosen with care.",
    "As to {property}, it has {value}.",
    "You will like the {property}: {value}.",
)
_PAIRED = (
    "With {first} as {one} and {second} as {two}, it fits your plans.",
    "It combines {first} ({one}) and {second} ({two}).",
    "{First} for the {one}, {second} for the {two}.",
)
_CLOSINGS = (
    "",
    "",
    "Order it today.",
    "A present that always fits.",
    "You will wonder how you managed before.",
)


@dataclasses.dataclass(frozen=True)
class Category:
    """A kind of product: its name, its family, and the plausible values of each property."""

    name: str
    family: str
    properties: Mapping[str, tuple[str, ...]]

    @property
    def values(self) -> list[str]:
        """Each property with all its values, as the verifier reads them."""
        return [f"{name}: {' | '.join(options)}" for name, options in self.properties.items()]


def _read(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, values = text.replace("=", ":", 1).partition(":")
    return name.strip(), tuple(value.strip() for value in values.split(","))


def _distinct(properties: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Drop values that another property has as well: a text could not say which is meant."""
    seen: dict[tuple[str, ...], str] = {}
    kept: dict[str, tuple[str, ...]] = {}
    for name, values in properties.items():
        own = tuple(v for v in values if seen.setdefault(tokens(v), name) == name)
        if len(own) > 1:
            kept[name] = own
    return kept


@functools.cache
def catalogue() -> tuple[Category, ...]:
    """Return all categories, in the order of the file."""
    categories, family, shared = [], "", {}
    text = Path(__file__).with_name("products.txt").read_text(encoding="utf-8")
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("#"):
            continue
        if line.startswith("["):
            family, shared = line.strip("[]"), {}
        elif line.startswith("+"):
            name, values = _read(line[1:])
            shared[name] = values
        else:
            name, _, rest = line.partition(":")
            own = dict(_read(part) for part in rest.split(";"))
            categories.append(Category(name.strip(), family, _distinct({**own, **shared})))
    return tuple(categories)


def catalogue_counts() -> dict[str, int]:
    """Return the numbers of categories, properties and property-value pairs."""
    sizes = [len(values) for c in catalogue() for values in c.properties.values()]
    return {
        "categories": len(catalogue()),
        "properties": len(sizes),
        "property-value pairs": sum(sizes),
    }


def draw_facts(category: Category, rng: np.random.Generator, most: int = 6) -> list[str]:
    """Return 2 to `most` facts "property: value" of one product, in random order."""
    names = shuffled(rng, tuple(category.properties))
    size = int(rng.integers(2, min(most, len(names)) + 1))
    return [f"{name}: {pick(rng, category.properties[name])}" for name in names[:size]]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def describe(category: Category, facts: Sequence[str], rng: np.random.Generator) -> str:
    """Return a description that states the facts, varied in form; the verifiers check it."""
    left = [tuple(part.strip() for part in fact.split(":", 1)) for fact in shuffled(rng, facts)]
    sentences = [pick(rng, _OPENINGS).format(name=category.name)]
    while left:
        if len(left) >= 2 and rng.random() < 0.4:
            (one, first), (two, second) = left.pop(), left.pop()
            form = pick(rng, _PAIRED)
            sentences.append(
                form.format(one=one, first=first, First=_capital(first), two=two, second=second)
            )
        else:
            name, value = left.pop()
            form = pick(rng, _SENTENCES)
            sentences.append(form.format(property=name, value=value, Value=_capital(value)))
    sentences.append(pick(rng, _CLOSINGS))
    gap = "\n" if rng.random() < 0.2 else " "
    return gap.join(filter(None, sentences))


def asked(category: Category, facts: Sequence[str]) -> tuple[Constraint, Constraint]:
    """Return the two constraints: state all of the facts, and no other of this category."""
    return (
        Constraint(_STATES, {"facts": list(facts)}),
        Constraint(_OTHERS, {"facts": list(facts), "values": category.values}),
    )


def edit_facts(
    category: Category, facts: Sequence[str], edit: str, rng: np.random.Generator
) -> list[str] | None:
    """Return the facts with one changed, added or removed; None if that is not possible."""
    names = [fact.split(":", 1)[0] for fact in facts]
    place = int(rng.integers(len(facts)))
    if edit == "remove":
        return [f for i, f in enumerate(facts) if i != place] if len(facts) > 1 else None
    if edit == "add":
        free = [name for name in category.properties if name not in names]
        if not free:
            return None
        name = pick(rng, free)
        return [*facts, f"{name}: {pick(rng, category.properties[name])}"]
    value = facts[place].split(":", 1)[1].strip()
    others = [v for v in category.properties[names[place]] if v != value]
    return [*facts[:place], f"{names[place]}: {pick(rng, others)}", *facts[place + 1 :]]


def make_pair(
    category: Category, rng: np.random.Generator, phrasing: str = "train"
) -> PreferentialPair | None:
    """Return a proven pair of one product, or None where its description does not pass.

    Both prompts ask for all facts that they give and for no others; the sides differ in both
    constraints, since both name the facts.
    """
    facts = draw_facts(category, rng)
    edit = pick(rng, EDITS)
    changed = edit_facts(category, facts, edit, rng)
    if changed is None:
        return None
    accepted, rejected = asked(category, facts), asked(category, changed)
    task = pick(rng, _TASKS).format(name=category.name)
    response = describe(category, facts, rng)
    seed = int(rng.integers(2**63))  # the two prompts share their form
    prompts = [
        compose_prompt(task, chosen, stream(seed, Stream.PRODUCT_WORDING), phrasing)
        for chosen in (accepted, rejected)
    ]
    pair = PreferentialPair(
        task, response, accepted, rejected, *prompts, edit="replace",
        type=_OTHERS if edit == "remove" else _STATES,
    )  # fmt: skip
    try:
        constraints.verify_pair(pair)
    except ValueError:
        return None
    return pair


def make_set(
    count: int, seed: int = 0, test_fraction: float = 0.1
) -> dict[str, list[PreferentialPair]]:
    """Return {"train", "test"}: `count` pairs in all, categories gone through in turn.

    A tenth of the categories (`test_fraction`) is kept for the test side, and there the phrasings
    of the constraints are the held-out ones: training sees neither. It does see the sentence forms
    of tasks and descriptions, and the values that a family of categories shares.

    Raises:
        ValueError: a count below 2.
    """
    if count < 2:
        raise ValueError(f"products: wanted 2 or more, got {count}")
    order = stream(seed, Stream.PRODUCT_CATEGORIES).permutation(len(catalogue()))
    held = max(1, round(test_fraction * len(order)))
    sides = {"train": order[held:], "test": order[:held]}
    wanted = {"test": max(1, round(test_fraction * count))}
    wanted["train"] = count - wanted["test"]
    made: dict[str, list[PreferentialPair]] = {}
    for side, chosen in sides.items():
        rng = stream(seed, Stream.PRODUCTS, side)
        pairs: dict[tuple[str, str], PreferentialPair] = {}
        turn = 0
        while len(pairs) < wanted[side]:
            category = catalogue()[chosen[turn % len(chosen)]]
            pair = make_pair(category, rng, "train" if side == "train" else "heldout")
            if pair is not None:
                pairs.setdefault((pair.prompt_accepted, pair.prompt_rejected), pair)
            turn += 1
        made[side] = list(pairs.values())
    return made
