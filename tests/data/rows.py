"""Hand-written responses to a few tasks, varied in length, commas, bullets and words."""

ROWS = [
    (
        "Write a short note about tea.",
        [
            "Tea is a warm drink made from leaves. It is calm, simple and good in the morning.",
            "Boil fresh water and pour it over the leaves. Wait three minutes. Drink it slowly.",
            "My grandmother kept her kettle on all day, and the kitchen smelled of mint, lemon "
            "and honey. I still think of her when I hold a cup. Nothing else feels like home.",
            "* Use fresh water\n* Warm the cup first\n* Do not rush",
        ],
    ),
    (
        "Give a beginner some advice about bicycles.",
        [
            "Check your brakes before you ride. Wear a helmet.",
            "Start on a quiet road, keep both hands on the bars, and look far ahead. Practice "
            "braking gently. Soon your balance will come by itself, and you will enjoy the wind.",
            "A good saddle matters more than a fast frame.",
            "- pump the tires\n- oil the chain\n- set the saddle height\n- test the brakes",
        ],
    ),
    (
        "Explain briefly why people like rain.",
        [
            "Rain makes plants grow and gives the air a fresh smell.",
            "People like the sound of drops on the roof. It is quiet, soft and steady. It helps "
            "them sleep, read or simply sit by the window with a warm drink and nothing to do.",
            "After a dry summer every cloud is welcome! Children jump in puddles. Farmers smile.",
            "It cools the street, cleans the dust away, and turns the garden green again.",
        ],
    ),
    (
        "Share a small thought about libraries.",
        [
            "A library is a quiet house full of voices.",
            "You can borrow a book about anything, from stars to spoons, and it costs nothing. "
            "That still surprises me. I hope it surprises my children too.",
            "Shelves, lamps, slow clocks. I could stay all day.",
            "Ask the person at the desk. They know where the good stories are and they like to "
            "help. Bring a card and a bag.",
        ],
    ),
]  # fmt: skip
TYPES = (
    "no_comma number_words forbidden_words existence title number_bullet_lists postscript "
    "end_checker number_sentences quotation"
).split()


def rows():
    """Return (task, response) rows."""
    return [(task, response) for task, responses in ROWS for response in responses]
