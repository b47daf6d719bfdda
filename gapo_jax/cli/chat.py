"""Talk to a model in the terminal, with its constraints checked while it writes.

    gapo-jax chat runs/quickstart [--against [smollm2-135m-instruct]]

Every line is a prompt of its own: the model reads none of the lines before. Constraints that a line
states in one of our phrasings are recognised, and --constraint adds others to every line; each is
checked as the answer grows. --against lets a second model answer beside the first; without a name
it is the one that the run began with. Ctrl-C ends an answer, Ctrl-D the talk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gapo_jax import rng
from gapo_jax.checkpoint import CheckpointError
from gapo_jax.cli import program, summary
from gapo_jax.cli.recognise import recognise
from gapo_jax.constraints import check, get, load_plugin
from gapo_jax.constraints.rows import instance
from gapo_jax.data.chat import stop_ids
from gapo_jax.data.tokenizer import chat_prompt, decode_responses, encode_prompts
from gapo_jax.evaluate.console import printable
from gapo_jax.models import Decoder
from gapo_jax.records import Constraint
from gapo_jax.rng import Stream
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.train.restore import Loaded, load_any, trained_system
from gapo_jax.train.sources import load_generator
from gapo_jax.train.toy_models import TOY_MODELS

NOTHING = "no constraint recognised in this prompt (--constraint adds one)"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(program("chat"), description=summary(__doc__))
    parser.add_argument("model", help="HF folder, hub id, .gguf or workdir")
    parser.add_argument(
        "--against",
        nargs="?",
        const="",
        metavar="BASE",
        help="another model beside it (without a name: the one that MODEL was made from)",
    )
    parser.add_argument(
        "--constraint",
        action="append",
        default=[],
        metavar="ID[:KWARGS]",
        help='such as no_comma or \'number_words:{"num_words": 20, "relation": "at least"}\'',
    )
    parser.add_argument("--plugin", action="append", default=[], help="file of constraint types")
    parser.add_argument("--system", default=None, help="replaces the system turn")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--greedy", action="store_true", help="temperature 0")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def constraint_of(text: str) -> Constraint:
    """Return the constraint of a flag: an id, a colon and JSON arguments, or the id alone.

    Raises:
        ValueError: no such type, or arguments that it does not take.
    """
    name, brace, rest = text.partition("{")
    try:
        kwargs = json.loads(brace + rest) if brace else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"--constraint {text}: the arguments are no JSON: {error}") from None
    return instance(name.rstrip(": "), kwargs)


@dataclasses.dataclass
class Speaker:
    """A model that answers, by the name that was asked for."""

    name: str
    loaded: Loaded
    system: str | None
    sample: Any

    def answer(
        self, prompt: str, key: jax.Array, temperature: float, show: Callable[[str], None]
    ) -> str:
        """Return the answer to a prompt; `show` gets the text after every token.

        Raises:
            ValueError: the prompt is longer than the model reads.
        """
        tokenizer = self.loaded.tokenizer
        limit = self.loaded.module.config.max_positions - self.sample.settings.max_new_tokens
        widths = [width for width in (64, 128, 256, 512, 1024) if width < limit] + [limit]
        tokens_BP, mask_BP = encode_prompts(
            tokenizer, [chat_prompt(tokenizer, prompt, self.system)], limit, buckets=widths
        )
        text = ""

        def on_token(tokens: Sequence[int]) -> bool:
            nonlocal text
            row = np.asarray([tokens])
            (text,) = decode_responses(tokenizer, row, np.ones_like(row))
            show(text)
            return False

        keys_B = key[None]
        self.sample(self.loaded.params, tokens_BP, mask_BP, keys_B, temperature, stop=on_token)
        return text


def load_speaker(name: str, args: argparse.Namespace) -> Speaker:
    """Load a model and its sampler, which hands out one token at a time.

    Raises:
        ValueError: it is no decoder.
    """
    toy = name in TOY_MODELS
    loaded = Loaded(*load_generator(name, seed=0), None, name) if toy else load_any(name)
    if not isinstance(loaded.module, Decoder):
        raise ValueError(f"{name} is an encoder; it cannot generate text")
    config = loaded.module.config
    sample = make_sampler(
        loaded.module,
        max_new_tokens=args.max_new_tokens,
        eos_ids=stop_ids(loaded.tokenizer, config.eos_ids),
        pad_id=config.pad_id,
        slots=1,
        chunk=1,
        top_p=args.top_p,
    )
    system = trained_system(name) if args.system is None else args.system
    return Speaker(name, loaded, system, sample)


def panel(name: str, text: str, constraints: Sequence[Constraint], prompt: str) -> Group:
    """Return what is shown of one answer: its text, then each constraint and whether it holds."""
    lines = [Text(printable(name), style="bold"), Text(printable(text))]
    ids = [constraint.id for constraint in constraints]
    verdicts = check(text, ids, [constraint.kwargs for constraint in constraints], prompt)
    for constraint, holds in zip(constraints, verdicts):
        mark, style = ("✓", "blue") if holds else ("✗", "yellow")
        described = get(constraint.id).describe(constraint)
        lines.append(Text(f"{mark} {printable(described)}", style=style))
    return Group(*lines)


def respond(
    speakers: Sequence[Speaker],
    prompt: str,
    extra: Sequence[Constraint],
    key: jax.Array,
    temperature: float,
    console: Console,
) -> None:
    """Let every model answer one prompt, and show the answers while they are written."""
    constraints = [*recognise(prompt), *extra]
    if len(constraints) == len(extra):
        console.print(Text(NOTHING, style="dim"))
    texts = [""] * len(speakers)

    def view() -> Columns:
        panels = [panel(s.name, text, constraints, prompt) for s, text in zip(speakers, texts)]
        width = console.width // len(speakers) - 2 if len(speakers) > 1 else None
        return Columns(panels, width=width)

    with Live(view(), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for index, speaker in enumerate(speakers):

            def show(text: str, index: int = index) -> None:
                texts[index] = text
                live.update(view(), refresh=console.is_terminal)

            try:
                speaker.answer(prompt, key, temperature, show)
            except KeyboardInterrupt:
                break
    console.print()


def main(argv: Sequence[str] | None = None) -> int:
    """Load the models, then answer line by line; return the exit status."""
    args = parse(argv)
    console = Console(highlight=False)
    try:
        for path in args.plugin:
            load_plugin(path)
        extra = [constraint_of(text) for text in args.constraint]
        speakers = [load_speaker(args.model, args)]
        if args.against is not None:
            speakers.append(load_speaker(args.against or speakers[0].loaded.base, args))
    except (OSError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    temperature = 0.0 if args.greedy else args.temperature
    for turn in range(sys.maxsize):
        try:
            prompt = console.input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if not prompt:
            continue
        key = rng.key(args.seed, Stream.CHAT_COMMAND, turn)
        try:
            respond(speakers, prompt, extra, key, temperature, console)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
