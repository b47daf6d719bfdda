"""The task prompts: sizes, splits that share nothing, words that can serve as keywords."""

import itertools
import re

import numpy as np
import pytest

from gapo_jax.data.prompts import make_prompts
from gapo_jax.data.tasks import (
    DEVELOPMENT_TOPICS,
    HELDOUT_TEMPLATES,
    HELDOUT_TOPICS,
    TRAIN_TEMPLATES,
    TRAIN_TOPICS,
    task_of,
    tasks,
)


def test_sizes():
    assert len(TRAIN_TOPICS) >= 70 and len(HELDOUT_TOPICS) >= 30
    assert 6 <= len(TRAIN_TEMPLATES) <= 8 and len(HELDOUT_TEMPLATES) >= 4
    assert len(tasks("train")) == len(TRAIN_TOPICS) * len(TRAIN_TEMPLATES)
    assert len({task.text for task in tasks("train")}) == len(tasks("train"))


@pytest.mark.parametrize("split", ["heldout_topics", "heldout_phrasings", "development"])
@pytest.mark.parametrize("other", ["train", "development"])
def test_topics_of_other_splits_share_nothing(split, other):
    if split == other:
        return
    train = {task.topic for task in tasks(other)}
    heldout = {task.topic for task in tasks(split)}
    for ours, theirs in itertools.product(train, heldout):
        assert ours not in theirs and theirs not in ours
        assert not set(ours.split()) & set(theirs.split())
    for task in tasks(split):
        words = set(re.findall(r"[a-z]+", task.text.lower()))
        template = set(re.findall(r"[a-z]+", task.template.lower()))
        assert not any(set(topic.split()) <= words - template for topic in train), task.text


def test_heldout_phrasings_are_unseen():
    unseen = {task.template for task in tasks("heldout_phrasings")}
    seen = {task.template for task in tasks("train")} | {
        task.template for task in tasks("heldout_topics")
    }
    assert not unseen & seen


def test_related_words_are_plain_and_not_in_the_topic():
    for topic, words in (TRAIN_TOPICS | HELDOUT_TOPICS | DEVELOPMENT_TOPICS).items():
        assert len(words) == len(set(words)) >= 6, topic
        for word in words:
            assert re.fullmatch(r"[a-z]{3,}", word), (topic, word)
            assert word not in topic.split()


def test_tasks_name_no_number_and_no_format():
    numbers = r"\b(one|two|three|four|five|six|list|bullet|title|words?|sentences?)\b|\d|,"
    for split in ("train", "heldout_topics", "heldout_phrasings", "development"):
        for task in tasks(split):
            assert not re.search(numbers, task.text, flags=re.IGNORECASE), task.text


def test_a_composed_prompt_tells_its_task():
    for split in ("train", "heldout_topics", "heldout_phrasings", "development"):
        for row in make_prompts(tasks(split), ["no_comma", "title"], 60, np.random.default_rng(1)):
            task = task_of(row.prompt)
            assert task is not None and task.text == row.task
    assert task_of("Write a poem.") is None and task_of("") is None


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="heldout_topics"):
        tasks("test")  # pyright: ignore[reportArgumentType]
