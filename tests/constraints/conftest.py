"""Responses of many shapes to sample from, written for the tests."""

import pytest

RESPONSES = (
    "The quiet river runs to the sea, and it carries sand. It is deep and slow in summer.",
    "Tea is a warm drink made from leaves.",
    "Here is a plan:\n* Wake up early\n* Drink water, then stretch\n* Go outside",
    '"Music lifts the mood and it helps tired people rest."',
    "<<Winter>>\nSnow falls in the night. Children build a snowman. P.S. Bring gloves!",
    "Walk more. Sleep well! Eat fruit? Of course. Thanks for reading.",
    "we sat by the fire and told old stories until the morning came and the birds sang.",
    "THE RIVER IS QUIET AND IT RUNS SLOWLY THROUGH THE TOWN BEFORE IT REACHES THE OPEN SEA.",
    "First part here.\n\nSecond part there.\n\nThird part, at last.",
    "One half.\n***\nThe other half.\n***\nA third of it.",
    "Section 1\nThe start of it.\nSection 2\nThe end of it.",
    "Dear [name], meet me at [place] on *Friday* or **Sunday** with P.P.S. notes.",
    '{"city": "Rome", "people": 3}',
    "My answer is maybe. Ask NASA or the BBC about it.",
    "Go left.\n******\nGo right.",
    "El perro duerme en la casa y el gato mira por la ventana toda la noche.",
    "Ok",
    "123, 456.",
)
WORDS = ("harbor", "lantern", "water", "garden", "people", "leaves", "market", "snow")


@pytest.fixture
def responses() -> tuple[str, ...]:
    """Short texts, among them one at least that satisfies each constraint type."""
    return RESPONSES


@pytest.fixture
def words() -> tuple[str, ...]:
    """Keyword candidates."""
    return WORDS
