"""Models in and out, and the proof that they are the same.

    gapo-jax convert import SRC DST     HF folder, hub id or .gguf file -> Orbax
    gapo-jax convert export SRC DST     run, checkpoint or import -> HF folder
    gapo-jax convert export RUN DST --adapter    a LoRA run's adapter -> PEFT folder
    gapo-jax convert export RUN DST --push-to-hub ORG/NAME [--dry-run]    and to the hub
    gapo-jax convert verify SRC         against transformers (needs torch)

`import` and `export` also take a PEFT adapter (folder or hub id) and merge it into its base, the
one that it names or --base. `export` takes the workdir of a run (its newest checkpoint, or --step),
WORKDIR/checkpoints/STEP, a folder made by `import`, or whatever `import` takes; what was not
trained keeps the dtype of its source. --tokenizer names the source of one for a .gguf file whose
own we cannot read. Both `export` (if torch is there, unless --no-compare) and `verify` let
transformers read the folder and print the largest differences of what it computes: hidden states
and logits, with padding on either side, by both libraries in float64 (20 bytes of memory for each
parameter). `verify` also compares the greedy tokens of a decoder, in float32. Their exit status is
1 when something differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from gapo_jax import hub, models, rng
from gapo_jax.checkpoint import CheckpointError
from gapo_jax.cli import program, summary
from gapo_jax.cli.push import check_repo, complete_card, push
from gapo_jax.data.tokenizer import chat_prompt, encode_prompts
from gapo_jax.data.weights import WEIGHTS, locate
from gapo_jax.rng import Stream
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.train.restore import IMPORTED, is_run, load_any, load_trained_adapters, save_imported

PROMPTS = (
    "Name three rivers and one mountain.",
    "Write a short note to a neighbour about a lost cat.",
    "What is 17 + 25? Explain in one sentence.",
    "Write a Python function that reverses a list.",
    "Describe the taste of a ripe pear.",
    "List five things to pack for a walk in the rain.",
    "Why do leaves turn red in autumn?",
    "Write a title for a story about a lighthouse keeper.",
    "Translate into French: The shop opens at nine.",
    "Give me two reasons to learn the piano.",
    "Summarise how a bicycle stays upright.",
    "Write a haiku about snow.",
    "What does a beekeeper do in spring?",
    "Explain to a child what a shadow is.",
    "Write an email asking for a day off.",
    "Which planet is the largest, and which the hottest?",
    "Suggest a name for a small bakery.",
    "How do I remove a coffee stain from a shirt?",
    "Compare trains and buses in three sentences.",
    "Tell me a joke about a librarian.",
)
COMPARED = 4  # prompts for logits; greedy decoding takes all of them
# In float64, where logits of any size can be held to it. What is left is transformers' norms and
# rotary angles, which it computes in float32 whatever the dtype.
TOLERANCE = 1e-4


def import_model(args: argparse.Namespace) -> int:
    """`import SRC DST`."""
    loaded = load_any(args.src, base=args.base, tokenizer=args.tokenizer)
    folder = Path(args.dst)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"Wanted a new or empty folder, got {folder}. Choose another.")
    module, params, tokenizer = loaded.module, loaded.params, loaded.tokenizer
    save_imported(module, params, tokenizer, folder, loaded.base, loaded.dtype)
    print(folder)
    return 0


def export_model(args: argparse.Namespace) -> int:
    """`export SRC DST`, and to the hub where that is asked for."""
    if not args.push_to_hub:
        return _export(args)
    check_repo(args.push_to_hub, args.dry_run)
    if status := _export(args):
        return status  # what differs from transformers' is not given to others
    what = "adapter" if args.adapter else args.network
    complete_card(Path(args.dst), args.src, args.push_to_hub, what, args.license, args.step)
    push(Path(args.dst), args.push_to_hub, private=args.private, dry_run=args.dry_run)
    return 0


def _export(args: argparse.Namespace) -> int:
    """Write the folder and compare it."""
    if args.adapter:
        decoder, adapters, base, method = load_trained_adapters(args.src, args.step)
        print(models.save_adapter(decoder, adapters, args.dst, base=base, method=method))
        return 0
    loaded = load_any(
        args.src,
        network=args.network,
        step=args.step,
        base=args.base,
        tokenizer=args.tokenizer,
    )
    dtype = args.dtype or loaded.dtype or "float32"
    folder = models.save_hf(
        loaded.module,
        loaded.params,
        args.dst,
        loaded.tokenizer,
        dtype=dtype,
        method=loaded.method,
        base=loaded.base,
        metrics=loaded.metrics,
    )
    print(folder)
    if (folder / models.HEAD_FILE).is_file():
        print(
            "its head is our own: AutoModelForSequenceClassification.from_pretrained needs "
            "trust_remote_code=True for it (README.md in the folder)"
        )
    if args.no_compare or importlib.util.find_spec("torch") is None:
        print("not compared with transformers (that needs torch, and no --no-compare)")
        return 0
    # What the file holds is rounded to its dtype; nothing else may differ.
    kind = models.DTYPES[dtype]
    params = jax.tree.map(lambda x: np.asarray(x).astype(kind).astype(np.float32), loaded.params)
    module, params = _comparable(loaded.module, params, folder)
    return _compare(module, params, loaded.tokenizer, _torch_model(folder, module))


def _comparable(module: Any, params: Any, folder: Path) -> tuple[Any, Any]:
    """Return the part of a network that transformers has a class for."""
    if (folder / models.HEAD_FILE).is_file():
        # It has none for this head: compare the encoder below it.
        return models.Encoder(module.config), params["encoder"]
    return module, params


def _torch_model(path: Path, module: Any) -> Any:
    """Return transformers' counterpart of `module` from an HF folder or GGUF file, float32."""
    import torch
    import transformers

    if path.is_dir():
        auto = {
            models.Decoder: transformers.AutoModelForCausalLM,
            models.Encoder: transformers.AutoModel,
        }.get(type(module), transformers.AutoModelForSequenceClassification)
        # Eager attention: the fast ones leave out soft caps.
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        return auto.from_pretrained(path, **options).eval()
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    record = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    left = model.load_state_dict(record["tensors"], strict=False)
    if left.unexpected_keys or set(left.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"transformers could not fill its own model from {path}: {left}")
    model.tie_weights()
    return model


def _compare(module: Any, params: Any, tokenizer: Any, theirs: Any) -> int:
    """Print the largest differences on the prompts, padded on the right and on the left, both sides
    in float64; 1 if one is too large. `theirs` is float32 again afterwards."""
    texts = [chat_prompt(tokenizer, prompt) for prompt in PROMPTS[:COMPARED]]
    tokens_BT, mask_BT = encode_prompts(tokenizer, texts, module.config.max_positions)
    tokens_BT = np.where(mask_BT > 0, tokens_BT, module.config.pad_id)
    left, lengths_B = (tokens_BT, mask_BT), mask_BT.sum(axis=1)
    right = [np.stack([np.roll(row, n) for row, n in zip(x_BT, lengths_B)]) for x_BT in left]
    batches = {"right": right, "left": left}
    theirs = theirs.double()
    with jax.enable_x64(True):
        ours = module.clone(config=dataclasses.replace(module.config, dtype="float64"))
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        run = jax.jit(lambda wide, *batch: ours.apply({"params": wide}, *batch, method=_outputs))
        outputs = {side: run(wide, *batch) for side, batch in batches.items()}
    failed = False
    for side, (tokens_BT, mask_BT) in batches.items():
        want = _torch_outputs(theirs, module, tokens_BT, mask_BT)
        for name, got in outputs[side].items():
            # On the left transformers' encoder classifiers read a padding token.
            if name == "logit" and side == "left" and isinstance(module, models.Discriminator):
                continue
            got, real = np.asarray(got), mask_BT > 0
            there = real if got.ndim > 1 else slice(None)
            got, wanted = got[there], want[name].reshape(got.shape)[there]
            difference, largest = np.abs(got - wanted).max(), np.abs(wanted).max()
            failed |= not difference <= TOLERANCE
            print(
                f"largest {name} difference from transformers {difference:.3g} ({name}s up to "
                f"{largest:.3g}, tolerance {TOLERANCE:g}; float64, padding on the {side})"
            )
    theirs.float()
    return int(failed)


def _outputs(module: Any, tokens_BT: jax.Array, mask_BT: jax.Array) -> dict[str, jax.Array]:
    """Return what is compared of a network: final hidden states [B, T, D], and logits."""
    if isinstance(module, models.Encoder):
        return {"hidden state": module(tokens_BT, mask_BT)}
    if isinstance(module, models.Decoder):
        hidden_BTD = module.hidden(tokens_BT, mask_BT)
        return {"hidden state": hidden_BTD, "logit": module.logits(hidden_BTD)}
    reads = isinstance(module, models.RewardModel)
    hidden_BTD = (module.decoder.hidden if reads else module.encoder)(tokens_BT, mask_BT)
    return {"hidden state": hidden_BTD, "logit": module.score_hidden(hidden_BTD, mask_BT)}


def _torch_outputs(
    theirs: Any, module: Any, tokens_BT: np.ndarray, mask_BT: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the same of transformers' model, whose eager attention takes its softmax in float32
    by request: there float64's mask is infinite, and a row of padding NaN."""
    import torch

    plain = torch.nn.functional.softmax

    def softmax(scores: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
        return plain(scores, dim=dim, dtype=None if scores.dtype == torch.float64 else dtype)

    ids, mask = torch.tensor(tokens_BT).long(), torch.tensor(mask_BT).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    if isinstance(module, (models.Decoder, models.RewardModel)):
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if getattr(module.config, "global_first", False):
        batch["global_attention_mask"] = ((mask.cumsum(1) == 1) & (mask > 0)).long()
    with torch.no_grad(), mock.patch.object(torch.nn.functional, "softmax", softmax):
        outputs = {"hidden state": theirs.base_model(**batch).last_hidden_state.numpy()}
        if not isinstance(module, models.Encoder):
            outputs["logit"] = theirs(**batch).logits.numpy()
    return outputs


def verify_model(args: argparse.Namespace) -> int:
    """`verify SRC`."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            "Wanted torch for the comparison, got an environment without it. "
            "Install it: pip install torch"
        )
    path = locate(args.src) if args.src in WEIGHTS else hub.resolve(args.src)
    if is_run(path) or (path / IMPORTED).is_file():
        raise ValueError(
            "Wanted what transformers reads too (an HF folder, a hub id or a .gguf file), got the "
            f"run or import {path}. `convert.py export {path} FOLDER` compares by itself."
        )
    if not 0 <= args.first < len(PROMPTS) or args.prompts < 1 or args.tokens < 1:
        raise ValueError(
            f"Wanted --first from 0 to {len(PROMPTS) - 1} and --prompts and --tokens of at least "
            f"1, got {args.first}, {args.prompts} and {args.tokens}."
        )
    loaded = load_any(path, tokenizer=args.tokenizer)
    module, params = _comparable(loaded.module, loaded.params, path)
    theirs = _torch_model(path, module)
    failed = _compare(module, params, loaded.tokenizer, theirs)
    if not isinstance(module, models.Decoder):
        return failed
    chosen = PROMPTS[args.first : args.first + args.prompts]
    equal = _greedy_equal(module, params, loaded.tokenizer, theirs, chosen, args.tokens)
    print(f"greedy tokens equal on {equal} of {len(chosen)} prompts over {args.tokens} tokens")
    return int(failed or equal < len(chosen))


def _greedy_equal(
    decoder: models.Decoder,
    params: Any,
    tokenizer: Any,
    theirs: Any,
    prompts: Sequence[str],
    count: int,
) -> int:
    """Return on how many prompts both libraries write the same `count` greedy tokens.

    Neither stops at an end-of-turn token: what comes after it is compared too. Raises ValueError if
    one of them wrote fewer.
    """
    import torch
    import transformers

    texts = [chat_prompt(tokenizer, prompt) for prompt in prompts]
    tokens_BP, mask_BP = encode_prompts(tokenizer, texts, decoder.config.max_positions)
    pad_id = decoder.config.pad_id
    sample = make_sampler(decoder, max_new_tokens=count, eos_ids=(), pad_id=pad_id)
    keys_B = rng.row_keys(0, Stream.GENERATE_COMMAND, count=len(tokens_BP))
    rollout = sample(params, tokens_BP, mask_BP, keys_B, 0.0)
    # A fresh one: the model's may stop, or penalise repetition.
    theirs.generation_config = transformers.GenerationConfig(pad_token_id=pad_id)
    ids, mask = torch.tensor(tokens_BP).long(), torch.tensor(mask_BP).long()
    out = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=pad_id
    )
    width, equal = ids.shape[1], 0
    if not out.shape == rollout.tokens_BT.shape == (len(prompts), width + count):
        raise ValueError(
            f"Wanted {count} tokens of each prompt behind {width}, got {tuple(out.shape)} from "
            f"transformers and {rollout.tokens_BT.shape} from us. Ask for fewer --tokens."
        )
    for row, (text, tokens) in enumerate(zip(prompts, np.asarray(rollout.tokens_BT))):
        want, got = out[row, width:].numpy(), tokens[width:]
        if np.array_equal(want, got):
            equal += 1
            continue
        place = int(np.argmax(want != got))
        real = mask_BP[row] > 0
        prefix = torch.cat([ids[row, real], out[row, width : width + place]])
        with torch.no_grad():
            logits_V = theirs(prefix[None]).logits[0, -1]
        gap = float(logits_V[int(want[place])] - logits_V[int(got[place])])
        # Two tokens within the rounding of the logits are a tie that either may win.
        print(
            f"{text!r}: token {place + 1} of {count} is {got[place]}, transformers' "
            f"{want[place]}, whose logit there is higher by {gap:.3g}"
        )
    return equal


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program("convert"), description=summary(__doc__))
    tokenizer = "its source (HF folder, hub id), for a .gguf whose own we cannot read"
    base = "the base of a PEFT adapter, if not the one it names"
    dtype = "default: that of the source; float32 for what was trained and for GGUF"
    commands = parser.add_subparsers(required=True, metavar="import | export | verify")
    command = commands.add_parser("import", help="HF folder, hub id or GGUF file to Orbax")
    command.add_argument("src")
    command.add_argument("dst")
    command.add_argument("--base", help=base)
    command.add_argument("--tokenizer", help=tokenizer)
    command.set_defaults(run=import_model)
    command = commands.add_parser("export", help="run, checkpoint or import to an HF folder")
    command.add_argument("src")
    command.add_argument("dst")
    command.add_argument("--step", type=int, default=None)
    command.add_argument("--network", choices=("generator", "discriminator"), default="generator")
    command.add_argument("--base", help=base)
    command.add_argument("--tokenizer", help=tokenizer)
    command.add_argument("--adapter", action="store_true", help="a LoRA run's adapter, for PEFT")
    command.add_argument("--dtype", choices=sorted(models.DTYPES), help=dtype)
    command.add_argument("--no-compare", action="store_true", help="do not ask transformers")
    command.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload it, with a card")
    command.add_argument("--dry-run", action="store_true", help="print what would be uploaded")
    command.add_argument("--private", action="store_true", help="in a private repository")
    command.add_argument("--license", help="for the card, such as apache-2.0")
    command.set_defaults(run=export_model)
    command = commands.add_parser("verify", help="compare with transformers (needs torch)")
    command.add_argument("src")
    command.add_argument("--tokenizer", help=tokenizer)
    command.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many to continue")
    command.add_argument("--first", type=int, default=0, help="the number of the first of them")
    command.add_argument("--tokens", type=int, default=128, help="greedy tokens of each")
    command.set_defaults(run=verify_model)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three commands; errors go to standard error, with exit status 1."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (FileNotFoundError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
