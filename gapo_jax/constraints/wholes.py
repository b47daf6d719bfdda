"""Types about the response as a whole: its language, two answers in one, the request repeated."""

from __future__ import annotations

from gapo_jax.constraints import official
from gapo_jax.constraints.base import ConstraintType, pick, shuffled

# Requests to repeat where there is no task; ours.
REQUESTS: tuple[str, ...] = (
    "Write a short answer to this.",
    "Tell me something about it.",
    "Explain it in your own words.",
    "Answer the question below.",
)


class ResponseLanguage(ConstraintType):
    """The whole response is in one language (as langdetect judges, seeded)."""

    id = "language:response_language"
    train = (
        "Write the entire answer in {name}.",
        "Your whole reply must be in {name}, with no other language in it.",
        "Answer only in {name}.",
    )
    heldout = ("No language but {name} may occur in your text.",)
    probes = (
        (
            {"language": "es"},
            "El río tranquilo corre despacio por el pueblo hasta llegar al mar.",
            "The quiet river runs slowly through the town until it meets the sea.",
        ),
    )
    difference = "the language"
    _COMMON = ("en", "es", "fr", "de", "it", "pt")

    def fields(self, kwargs):
        return {"name": official.language_codes()[kwargs["language"]]}

    def propose(self, rng, response, satisfied, words, task):
        if response is not None and satisfied:
            codes = [code for code in official.language_codes() if self._follows(code, response)]
            return {"language": pick(rng, codes)} if codes else None
        return {"language": pick(rng, self._COMMON)}

    def near_misses(self, rng, kwargs, response, words):
        for code in shuffled(rng, self._COMMON):
            yield {"language": code}

    def _follows(self, code, response):
        return official.follows(self.id, {"language": code}, response)


class TwoResponses(ConstraintType):
    """Two different responses divided by six asterisks."""

    id = "combination:two_responses"
    train = (
        "Give two different answers divided by six asterisks: ******",
        "Write two distinct replies and put ****** between them.",
        "I need two separate versions, with the line ****** in the middle.",
    )
    heldout = ("Offer a pair of unlike responses; ****** is what parts them.",)
    siblings = (
        "length_constraints:number_paragraphs",
        "detectable_format:number_bullet_lists",
        "detectable_format:title",
    )
    probes = (
        (
            {},
            "Rivers run to the sea.\n******\nWater finds its way.",
            "Rivers run to the sea.\n***\nWater finds its way.",
        ),
    )
    difference = "six asterisks"


class RepeatPrompt(ConstraintType):
    """The response first repeats a request word for word."""

    id = "combination:repeat_prompt"
    train = (
        'Before you answer, repeat this request word for word: "{prompt_to_repeat}"',
        'First copy the following without any change, then answer: "{prompt_to_repeat}"',
        'Begin your reply with an exact copy of "{prompt_to_repeat}" and then respond.',
    )
    heldout = (
        'The opening of your reply has to be "{prompt_to_repeat}" exactly as it stands; the answer'
        " comes after that.",
    )
    probes = (
        (
            {"prompt_to_repeat": "Write about a river."},
            "Write about a river. It runs to the sea.",
            "It runs to the sea.",
        ),
    )
    difference = "the first words"

    def propose(self, rng, response, satisfied, words, task):
        if response is not None and satisfied:
            if task and self._follows(task, response):
                return {"prompt_to_repeat": task}
            sentences = official.sentence_tokenizer().tokenize(response)
            return {"prompt_to_repeat": sentences[0]} if sentences else None
        return {"prompt_to_repeat": task if task else pick(rng, REQUESTS)}

    def near_misses(self, rng, kwargs, response, words):
        # The request with two of its words exchanged, or without one of them.
        parts = kwargs["prompt_to_repeat"].split()
        for _ in range(4):
            if len(parts) > 2:
                place = int(rng.integers(len(parts) - 1))
                changed = list(parts)
                changed[place], changed[place + 1] = changed[place + 1], changed[place]
                yield {"prompt_to_repeat": " ".join(changed)}
        yield {"prompt_to_repeat": pick(rng, REQUESTS)}

    def _follows(self, request, response):
        return official.follows(self.id, {"prompt_to_repeat": request}, response)


TYPES = (ResponseLanguage(), TwoResponses(), RepeatPrompt())
