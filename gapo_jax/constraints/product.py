"""Product facts as constraints: state these property values, and no other value of them.

The two constraints of the paper's product description set (GAPO, arXiv 2503.20194, appendix A).
`product_checks.py` gives the verdicts.
"""

from __future__ import annotations

import re

from gapo_jax.constraints import product_checks
from gapo_jax.constraints.base import TrainableType, pick, quoted, shuffled
from gapo_jax.constraints.text import final_answer

# Values to draw from where there is no catalogue; `data/products.py` has thousands.
_EXAMPLES: dict[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "black", "white", "silver", "beige"),
    "material": ("stainless steel", "oak", "glass", "cotton", "leather", "bamboo", "ceramic"),
    "capacity": ("0.5 l", "1 l", "1.5 l", "2 l", "5 l"),
    "weight": ("200 g", "500 g", "1 kg", "3 kg", "8 kg"),
    "warranty": ("1 year", "2 years", "3 years", "5 years", "10 years"),
}


def _lines(table) -> list[str]:
    return [f"{name}: {' | '.join(options)}" for name, options in table.items()]


def _options(name: str, value: str) -> list[str]:
    """Return other values of a property: those of the table, or the value with another number."""
    known = [option for option in _EXAMPLES.get(name, ()) if option != value]
    number = re.search(r"\d+(?:\.\d+)?", value)
    # Numbers that look alike, which a discriminator has to read: "2 l" for "1 l".
    if number is not None:
        for change in (2, 0.5, 1.5):
            changed = f"{float(number[0]) * change:g}"
            known.append(value[: number.start()] + changed + value[number.end() :])
    return known or list(_EXAMPLES["colour"])


class StatesFacts(TrainableType):
    """The text states the value of every given property."""

    id = "product:states_facts"
    train = (
        "State these facts: {listed}.",
        "The text has to give the following properties with exactly these values: {listed}.",
        "Use all of this information: {listed}.",
    )
    heldout = ("Readers must learn from you that the product has {listed}.",)
    probes = (
        (
            {"facts": ["colour: red", "capacity: 2 l"]},
            "A red kettle that holds 2 l.",
            "A blue kettle that holds 2 l.",
        ),
    )
    difference = "a property value"

    def fields(self, kwargs):
        return {"listed": "; ".join(kwargs["facts"])}

    def measure(self, kwargs, response):
        return (
            len(product_checks.stated(response, kwargs["facts"])),
            "at least",
            len(kwargs["facts"]),
        )

    def propose(self, rng, response, satisfied, words, task):
        names = shuffled(rng, tuple(_EXAMPLES))[: int(rng.integers(1, 4))]
        if response is None:
            return {"facts": [f"{name}: {pick(rng, _EXAMPLES[name])}" for name in names]}
        known = [f"{name}: {value}" for name, options in _EXAMPLES.items() for value in options]
        there = product_checks.stated(response, known)
        if satisfied:
            # One fact for each property: two values of one would contradict each other.
            chosen = {product_checks.split_fact(fact)[0]: fact for fact in shuffled(rng, there)}
            return {"facts": list(chosen.values())} if chosen else None
        # One absent fact beside stated ones, so that the prompt is on topic.
        absent = [fact for fact in known if fact not in there]
        return {"facts": shuffled(rng, there)[:2] + [pick(rng, absent)]} if absent else None

    def near_misses(self, rng, kwargs, response, words):
        for place in shuffled(rng, range(len(kwargs["facts"]))):
            given = list(kwargs["facts"])
            name, value = product_checks.split_fact(given[place])
            for option in shuffled(rng, _options(name, value)):
                yield {"facts": given[:place] + [f"{name}: {option}"] + given[place + 1 :]}


class NoOtherFacts(TrainableType):
    """The text states no other value of a listed property than those given."""

    id = "product:no_other_facts"
    train = (
        "State no value of {names} but these: {listed}.",
        "Of {names}, mention nothing else than {listed}.",
        "Add no other value of {names} to these: {listed}.",
    )
    heldout = ("Whatever else could be said about {names}, leave it out; allowed is {listed}.",)
    _VALUES = ["colour: red | blue", "capacity: 1 l | 2 l"]
    probes = (
        (
            {"facts": ["colour: red"], "values": _VALUES},
            "A red kettle for your kitchen.",
            "A red kettle of 2 l for your kitchen.",
        ),
    )
    difference = "a property value that was not given"

    def fields(self, kwargs):
        names = [product_checks.split_fact(line)[0] for line in kwargs["values"]]
        return {
            "listed": "; ".join(kwargs["facts"]),
            "names": quoted(names).replace('"', ""),
        }

    def shortfall(self, constraint, response):
        kwargs, answer = constraint.kwargs, final_answer(response)
        # Each further value, as a share of all that are stated or allowed.
        extra = len(product_checks.others_stated(answer, kwargs["facts"], kwargs["values"]))
        return max(1, extra) / (max(1, extra) + len(kwargs["facts"]))

    def propose(self, rng, response, satisfied, words, task):
        names = shuffled(rng, tuple(_EXAMPLES))[:3]
        values = _lines({name: _EXAMPLES[name] for name in names})
        known = [f"{name}: {value}" for name in names for value in _EXAMPLES[name]]
        there = product_checks.stated(response, known) if response is not None else []
        if response is None or satisfied:
            return {"facts": there or [pick(rng, known)], "values": values}
        given = [fact for fact in known if fact not in there]
        return {"facts": [pick(rng, given)], "values": values} if there and given else None

    def near_misses(self, rng, kwargs, response, words):
        given = list(kwargs["facts"])
        for place in shuffled(rng, range(len(given))):  # a value that the text states is taken out
            name, value = product_checks.split_fact(given[place])
            rest = given[:place] + given[place + 1 :]
            yield {**kwargs, "facts": rest or [f"{name}: {pick(rng, _options(name, value))}"]}


TYPES = (StatesFacts(), NoOtherFacts())
