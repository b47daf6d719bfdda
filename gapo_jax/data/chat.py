"""Encode dialogues for a model, and say which of their tokens are answers.

Sampling, training and lint render by the same functions: the model's chat template around contents
that cannot hold a control token (`control_tokens.py`). In training a prompt is followed by exactly
what the template writes there: the answer, and the tokens that end it. For a tokenizer without a
template the prompt is the plain text, behind BOS if the tokenizer adds one.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gapo_jax.data.chat_template import Turn, render, template_of
from gapo_jax.data.control_tokens import TextEncoder, text_encoder
from gapo_jax.records import Json, JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ASKED = {"role": "user", "content": "x"}
_PROBE = "gapoprobe"  # an answer that no template changes
_THOUGHT = "</think>"
_MARKUPS: weakref.WeakKeyDictionary[TextEncoder, _AnswerMarkup] = weakref.WeakKeyDictionary()
_VARIABLES: weakref.WeakKeyDictionary[Any, JsonObject] = weakref.WeakKeyDictionary()


def set_template_variables(tokenizer: PreTrainedTokenizerFast, variables: Json) -> None:
    """Give a tokenizer's chat template variables of its own, such as `enable_thinking`, and with
    "date" (YYYY-MM-DD) the day that it takes for today. They hold wherever the tokenizer renders.
    """
    _VARIABLES[tokenizer] = dict(variables)
    _MARKUPS.pop(text_encoder(tokenizer), None)


def rendering_key(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a short hash of all that decides which ids a dialogue gets."""
    backend: Any = tokenizer.backend_tokenizer
    parts = [
        backend.to_str(),
        template_of(tokenizer),
        sorted(tokenizer.special_tokens_map.items(), key=str),
        sorted(_VARIABLES.get(tokenizer, {}).items()),
        text_encoder(tokenizer).limit,
    ]
    return hashlib.blake2b(repr(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


class ChatText(str):
    """A rendered prompt as people read it; `ids` are the tokens that the model reads."""

    ids: list[int]

    @classmethod
    def of(cls, encoder: TextEncoder, markup: str) -> ChatText:
        """Encode a text of `TextEncoder.markup`."""
        text = cls(encoder.shown(markup))
        (text.ids,) = encoder.encode([markup])
        return text


def chat_prompt(
    tokenizer: PreTrainedTokenizerFast, prompt: str | Sequence[Turn], system: str | None = None
) -> ChatText:
    """Return the text that the model is to continue: one user turn, or the turns of a dialogue, in
    the model's chat template.

    `system=None` leaves the system turn to the template: SmolLM2's writes "You are a helpful AI
    assistant named SmolLM, trained by Hugging Face". A string, "" included, replaces it. A dialogue
    that has a system turn keeps that.

    Raises:
        ValueError: a system text for a tokenizer without a chat template; a template that refuses
            the turns.
    """
    own = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    has_system = own[0]["role"] == "system"
    turns = [] if system is None or has_system else [{"role": "system", "content": system}]
    turns += own
    return ChatText.of(text_encoder(tokenizer), _rendered(tokenizer, turns, generate=True))


def dialogue_text(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn]) -> ChatText:
    """Return a whole dialogue, its last answer with all that the template writes behind it, as a
    reward model reads it."""
    return ChatText.of(text_encoder(tokenizer), _rendered(tokenizer, turns))


def _rendered(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], *, generate: bool = False
) -> str:
    """Return turns as a text of `TextEncoder.markup`."""
    encoder, template = text_encoder(tokenizer), template_of(tokenizer)
    contents = [encoder.mark(t["content"], answer=t["role"] == "assistant") for t in turns]
    if template is None:
        if any(turn["role"] == "system" for turn in turns):
            raise ValueError(
                "Wanted a chat template for the system text, got a tokenizer without one. "
                "Set system to None, or set the chat_template of the tokenizer."
            )
        bos = tokenizer.bos_token if _adds_bos(tokenizer) else ""
        return encoder.markup(f"{bos}{''.join(contents)}")
    marked = [turn | {"content": text} for turn, text in zip(map(dict, turns), contents)]
    names = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    variables = names | _VARIABLES.get(tokenizer, {})
    return encoder.markup(render(template, marked, generate=generate, **variables))


def _adds_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][0] == bos  # pyright: ignore


class _AnswerMarkup(NamedTuple):
    """What a template puts around an answer, as texts of `TextEncoder.markup`.

    Attributes:
        prompt: a rendered prompt, the same for all answers.
        header: what the template writes between a prompt and its answer, such as Qwen 3's empty
            thought.
        end: what ends the answer, up to and with its first control token; "" if there is none.
    """

    prompt: str
    header: str
    end: str


def _answer_markup(tokenizer: PreTrainedTokenizerFast) -> _AnswerMarkup:
    encoder = text_encoder(tokenizer)
    if encoder not in _MARKUPS:
        _MARKUPS[encoder] = _read_answer_markup(tokenizer, encoder)
    return _MARKUPS[encoder]


def _read_answer_markup(tokenizer: PreTrainedTokenizerFast, encoder: TextEncoder) -> _AnswerMarkup:
    if template_of(tokenizer) is None:
        return _AnswerMarkup("", "", "")
    prompt = _rendered(tokenizer, [_ASKED], generate=True)
    whole = _rendered(tokenizer, [_ASKED, {"role": "assistant", "content": _PROBE}])
    before, _, behind = whole.rpartition(_PROBE)
    control = encoder.first_control(behind)
    return _AnswerMarkup(
        prompt,
        before.removeprefix(prompt) if before.startswith(prompt) else "",
        behind[: control.end()] if control else "",
    )


def end_id(tokenizer: PreTrainedTokenizerFast, eos_ids: Sequence[int] = ()) -> int | None:
    """Return the token that ends an answer.

    It is the one that the chat template writes there. Without one it is the tokenizer's EOS if the
    model stops at it, else the first token at which the model stops.
    """
    encoder, own = text_encoder(tokenizer), tokenizer.eos_token_id
    control = encoder.first_control(_answer_markup(tokenizer).end)
    if control:
        return encoder.names[encoder.shown(control.group())]
    return own if own in eos_ids or not eos_ids else eos_ids[0]  # pyright: ignore[reportReturnType]


def stop_ids(tokenizer: PreTrainedTokenizerFast, eos_ids: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens at which sampling stops: the model's, and the template's end of answers."""
    end = end_id(tokenizer, eos_ids)
    return tuple(eos_ids) if end is None or end in eos_ids else (*eos_ids, end)


class _Place(NamedTuple):
    """The place of an answer in a rendered dialogue, as indices into the text.

    Attributes:
        start: end of the prompt; a header may follow.
        text: end of the answer's own text.
        end: end of what the template closes the answer with.
    """

    start: int
    text: int
    end: int


def _locate(
    tokenizer: PreTrainedTokenizerFast, whole: str, prompt: str, content: str
) -> _Place | None:
    """Find the answer to `prompt` in a rendered dialogue.

    Returns None if the template has rewritten the prompt or the answer.
    """
    around, plain = _answer_markup(tokenizer), text_encoder(tokenizer).without_control(whole)
    if not whole.startswith(prompt):
        return None
    header = around.header if whole.startswith(around.header, len(prompt)) else ""
    # Templates strip answers, and leave the thoughts of earlier ones out.
    for said in (content, content.strip(), content.rpartition(_THOUGHT)[2].strip()):
        at = plain.find(said, len(prompt) + len(header))
        if at >= 0:
            text = at + len(said)
            ends = whole.startswith(around.end, text)
            return _Place(len(prompt), text, text + len(around.end) * ends)
    return None


def response_ids(
    tokenizer: PreTrainedTokenizerFast,
    responses: Sequence[str],
    ended: Sequence[bool],
    eos_id: int | None = None,
) -> list[list[int]]:
    """Return the ids of each response as they follow its prompt in the rendered dialogue.

    Args:
        tokenizer: of the model.
        responses: plain texts.
        ended: which responses get the end that the chat template gives an answer.
        eos_id: their end if the template has none; by default the tokenizer's EOS.
    """
    encoder, around = text_encoder(tokenizer), _answer_markup(tokenizer)
    has_template = template_of(tokenizer) is not None
    texts = []
    for response, whole in zip(responses, ended, strict=True):
        text = response + around.end * whole
        if has_template:
            dialogue = _rendered(tokenizer, [_ASKED, {"role": "assistant", "content": response}])
            place = _locate(tokenizer, dialogue, around.prompt, response)
            if place is not None:
                text = dialogue[place.start : place.end if whole else place.text]
        texts.append(text)
    rows = encoder.encode_after(around.prompt, texts) if around.prompt else encoder.encode(texts)
    if around.end:
        return rows
    last = end_id(tokenizer) if eos_id is None else eos_id
    ending = [] if last is None else [last]
    return [row + ending * whole for row, whole in zip(rows, ended, strict=True)]


def dialogue_ids(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], trained: Collection[int]
) -> tuple[list[int], list[int]]:
    """Return (ids, mask) of a dialogue; mask 1 is trained on.

    The trained part of a turn begins right after its prompt and includes the end that the template
    gives it. Without a template the texts follow each other, and each trained one gets EOS.

    Args:
        tokenizer: of the model.
        turns: "role" and "content" of each.
        trained: indices of the turns to train on.

    Raises:
        ValueError: the template refuses the turns, or it rewrites a trained turn or one before it,
            so that the trained part cannot be found.
    """
    last = len(turns) - 1
    if template_of(tokenizer) is None:
        parts = [
            (response_ids(tokenizer, [turn["content"]], [index in trained])[0], index in trained)
            for index, turn in enumerate(turns)
        ]
    elif set(trained) == {last}:
        prompt = ChatText.of(
            text_encoder(tokenizer), _rendered(tokenizer, turns[:last], generate=True)
        )
        answer = response_ids(tokenizer, [turns[last]["content"]], [True])
        parts = [(prompt.ids, False), (answer[0], True)]
    else:
        parts = _spans(tokenizer, turns, sorted(trained))
    ids = [token for part, _ in parts for token in part]
    return ids, [int(is_trained) for part, is_trained in parts for _ in part]


def _spans(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn], trained: Sequence[int]
) -> list[tuple[list[int], bool]]:
    """Return the ids of a dialogue in parts, and whether each is trained on."""
    encoder, whole = text_encoder(tokenizer), _rendered(tokenizer, turns)
    cuts = []
    for index in trained:
        prompt = _rendered(tokenizer, turns[:index], generate=True) if index else ""
        place = _locate(tokenizer, whole, prompt, turns[index]["content"])
        if place is None or (cuts and place.start < cuts[-1]):
            raise ValueError(
                "the chat template rewrites earlier turns or the answer itself, so the trained part"
                " cannot be told; train on the last answer only"
            )
        cuts += [place.start, place.end]
    parts = []
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(whole)])):
        piece = whole[start:end]
        (made,) = encoder.encode_after(whole[:start], [piece]) if start else encoder.encode([piece])
        parts.append((made, number % 2 == 1))
    return parts
