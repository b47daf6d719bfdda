"""Our own task prompts: everyday topics crossed with short requests, in three splits.

`train` crosses the training topics with the training templates; `heldout_topics` crosses unseen
topics with the training templates; `heldout_phrasings` crosses unseen topics with templates that
training never uses. The requests name no number and no format, so that they contradict none of
the constraints that are put beside them.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from gapo_jax.data.topics import HELDOUT_TOPICS, TRAIN_TOPICS

Split = Literal["train", "heldout_topics", "heldout_phrasings"]

TRAIN_TEMPLATES: tuple[str, ...] = (
    "Write a short note about {topic}.",
    "Give a beginner some advice about {topic}.",
    "Explain briefly why people like {topic}.",
    "Tell me something useful about {topic}.",
    "Describe {topic} to a child in simple language.",
    "Write a short message to a friend about {topic}.",
    "What should a visitor from far away know about {topic}?",
    "Share a small thought about {topic}.",
)

HELDOUT_TEMPLATES: tuple[str, ...] = (
    "What is the nicest part of {topic}?",
    "You meet someone who has never heard of {topic}. What would you say first?",
    "Introduce {topic} to the readers of a village newsletter.",
    "Say what comes to mind when you think of {topic}.",
    "How can {topic} make an ordinary day better?",
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A request without constraints: its text, the topic and the template that made it.

    `words` are likely words of an answer, candidates for keyword constraints.
    """

    text: str
    topic: str
    template: str
    split: Split
    words: tuple[str, ...] = ()


def tasks(split: Split) -> list[Task]:
    """Return all tasks of a split, topic by topic, in a fixed order.

    Args:
        split: "train", "heldout_topics" (unseen topics, training templates) or
            "heldout_phrasings" (unseen topics and unseen templates).

    Raises:
        ValueError: for an unknown split.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(get_args(Split))}")
    topics = TRAIN_TOPICS if split == "train" else HELDOUT_TOPICS
    templates = HELDOUT_TEMPLATES if split == "heldout_phrasings" else TRAIN_TEMPLATES
    return [
        Task(template.format(topic=topic), topic, template, split, words)
        for topic, words in topics.items()
        for template in templates
    ]
