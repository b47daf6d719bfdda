"""Product facts: precision and recall on labelled sentences, and other values of a property."""

import itertools
import re

import numpy as np
import pytest

from gapo_jax import constraints
from gapo_jax.constraints import product_checks as facts
from gapo_jax.types import Constraint

WORDS = ("harbor", "lantern", "water", "garden")
TEXTS = ("Tea is warm.", "A red kettle of steel holds 2 l.", "Ok", "123, 456.")


@pytest.mark.parametrize("type_id", constraints.types("product"))
def test_phrasings_samples_and_near_misses(type_id):
    kind = constraints.trainable(type_id)
    assert len(kind.train_styles) >= 3 and len(kind.heldout_styles) >= 1
    rng = np.random.default_rng(0)
    for _ in range(5):
        free = kind.sample(rng)
        assert free is not None
        said = [kind.describe(free, style) for style in kind.train_styles + kind.heldout_styles]
        assert len({re.sub(r"\W+", " ", text).lower() for text in said}) == len(said)
    modified = 0
    texts = [text for _, text, _ in kind.probes] + list(TEXTS)
    for text, satisfied in itertools.product(texts, (True, False)):
        made = kind.sample(rng, response=text, satisfied=satisfied, words=WORDS)
        if made is not None:
            assert constraints.check(text, [type_id], [made.kwargs]) == [satisfied]
        if made is not None and satisfied:
            after = kind.modify(made, text, rng, WORDS)
            if after is not None:
                modified += 1
                assert after != made and not constraints.holds(after, text)
                assert 0 < constraints.get(after.id).shortfall(after, text) <= 1
    for kwargs, text, _ in kind.probes:
        modified += kind.modify(Constraint(type_id, kwargs), text, rng, WORDS) is not None
    assert modified


# Sentences labelled by hand: (text, value, whether the text states it).
LABELLED = (
    ("A red kettle for two.", "red", True),
    ("The kettle comes in a bright red.", "red", True),
    ("It is not red but blue.", "red", False),
    ("It is not only red, it shines.", "red", True),
    ("Rather than red, we chose blue.", "red", False),
    ("Bored of black? This one is red.", "red", True),
    ("We covered it in leather.", "red", False),
    ("No plastic, no fuss: a glass body.", "glass", True),
    ("Made without glass.", "glass", False),
    ("Its frame is stainless-steel.", "stainless steel", True),
    ("Stainless steel, brushed.", "stainless steel", True),
    ("Steel that is stainless.", "stainless steel", False),
    ("A two-litre tank.", "2 l", True),
    ("A tank of 2 liters", "2 l", True),
    ("It holds 2L of water.", "2 l", True),
    ("It holds 1.2 l of water.", "2 l", False),
    ("It holds 12 l of water.", "2 l", False),
    ("It draws 1,500 watts.", "1500 W", True),
    ("1500W are enough.", "1500 W", True),
    ("With 2 years of warranty", "2 years", True),
    ("A two-year warranty is included.", "2 years", True),
    ("There is no two-year warranty.", "2 years", False),
    ("It weighs 500 grams", "500 g", True),
    ("It doesn't weigh 500 g", "500 g", False),
    ("A colour between grey and blue", "gray", True),
    ("The ALUMINUM body", "aluminium", True),
    ("Unlike oak, beech is light.", "oak", False),
    ("Soak it in water.", "oak", False),
    ("An oak. Not a beech.", "oak", True),
    ("It lacks a timer.", "timer", False),
    ("Available in crimson.", "red", False),
    ("The handle is crimson red", "red", True),
    ("T-shirt in red", "red", True),
    ("It is 30cm wide.", "30 cm", True),
    ("Five burners side by side", "5 burners", True),
    ("A 5-burner hob", "5 burners", True),
    ("Less than 40 dB", "40 dB", False),
    ("A whisper of forty decibels", "40 dB", True),
    ("It isn't available in blue or green.", "green", False),
    ("Not everybody needs a boiler; you want this blue one.", "blue", True),
)


def test_precision_and_recall_of_the_fact_verifier():
    """Measured on the sentences above; the one it gets wrong is named."""
    wrong = [
        (text, value)
        for text, value, label in LABELLED
        if bool(facts.mentions(text, value)) != label
    ]
    assert wrong == [("A whisper of forty decibels", "40 dB")]
    held = sum(label for _, _, label in LABELLED)
    assert (len(LABELLED), held) == (40, 25)  # precision 24/24, recall 24/25


# Labelled by hand, of a product whose facts are _OWN: whether the text states another value of
# _OF_A_KETTLE.
_OF_A_KETTLE = [
    "colour: red | blue | green | grey",
    "material: steel | stainless steel | glass | plastic",
    "capacity: 1 l | 1.5 l | 2 l",
    "warranty: 1 year | 2 years",
]
_OWN = ["colour: red", "material: stainless steel", "capacity: 1.5 l"]
LABELLED_OTHERS = (
    ("A red kettle of stainless steel that holds 1.5 l.", False),
    ("A red kettle with a blue lid.", True),
    ("Red outside, grey inside.", True),
    ("It is red, never blue.", False),
    ("No plastic anywhere: stainless steel throughout.", False),
    ("Stainless steel with a plastic handle.", True),
    ("Its steel is stainless.", False),
    ("It holds 2 litres.", True),
    ("It holds one and a half litres.", False),
    ("Comes with a two-year warranty.", True),
    ("Comes without a warranty.", False),
    ("A warranty of one year is included.", True),
    ("It boils in 2 minutes.", False),
    ("Red, not blue or green.", False),
    ("The water stays as clear as glass.", False),
    ("Also available in green.", True),
    ("Unlike plastic kettles it lasts.", False),
    ("The 1.5-litre kettle in red.", False),
    ("The body is glass rather than stainless steel.", True),
    ("A kettle.", False),
    ("Azure like the sea.", True),
    ("It greets you in green each morning.", True),
    ("It isn't made of plastic or glass.", False),
    ("A RED KETTLE, 2L", True),
    ("A gray base carries it.", True),
    ("Two colours, red and blue, meet in it.", True),
    ("You will not find plastic in it, nor glass.", False),
    ("Brushed stainless-steel, red handle.", False),
    ("Glass walls show the water.", True),
    ("Plastic is a thing of the past.", False),
)


def test_precision_and_recall_of_the_verifier_of_other_facts():
    wrong = [
        text
        for text, label in LABELLED_OTHERS
        if bool(facts.others_stated(text, _OWN, _OF_A_KETTLE)) != label
    ]
    assert wrong == [
        "Its steel is stainless.",
        "The water stays as clear as glass.",
        "Azure like the sea.",
        "Plastic is a thing of the past.",
    ]
    held = sum(label for _, label in LABELLED_OTHERS)
    assert (len(LABELLED_OTHERS), held) == (30, 14)  # precision 13/16, recall 13/14


def test_other_values_are_found_and_parts_of_given_ones_are_not():
    values = ["material: steel | stainless steel | oak", "colour: red | blue"]
    given_facts = ["material: stainless steel"]
    for text, wanted in (
        ("A stainless steel pan.", []),
        ("A stainless steel pan, blue inside.", ["colour: blue"]),
        ("A stainless steel pan with a steel lid.", ["material: steel"]),
        ("A stainless steel pan, not blue.", []),
        ("A pan.", []),
    ):
        assert facts.others_stated(text, given_facts, values) == wanted
        kwargs = {"facts": given_facts, "values": values}
        verdict = constraints.check(text, ["product:no_other_facts"], [kwargs])
        assert verdict == [not wanted]
    with pytest.raises(ValueError, match="facts to be a list of texts"):
        constraints.check("x", ["product:states_facts"], [{"facts": ["red"]}])
