"""Writes goldens.json: what TRL and torch say about the inputs that the golden tests use.

    pip install torch "trl==1.12.0" && python tests/losses/make_goldens.py

The tests read the file only and need neither package. "trl" numbers come out of TRL's own code,
called (`DPOTrainer._compute_loss` and its like, on a stand-in for the trainer that holds the
options and a stand-in for the model that returns given logits) or, where TRL keeps a formula inside
its training loop (PPO, GAE), by running those very lines of its source. "torch" numbers are torch's
own functions, or formulas written out in torch where TRL has none; `source` says which.
"""

import collections
import importlib
import inspect
import json
import pathlib
import textwrap
import types

import torch
import torch.nn.functional as F

OUT = pathlib.Path(__file__).with_name("goldens.json")
B, T, V = 4, 7, 13


def plain(value):
    """Tensors to lists, recursively."""
    if isinstance(value, torch.Tensor):
        return value.detach().tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def own_lines(function, first: str, last: str) -> str:
    """The lines of a function's source from the one that starts with `first` to `last`."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    stop = next(i for i, line in enumerate(lines) if i >= start and line.strip().startswith(last))
    return textwrap.dedent("\n".join(lines[start : stop + 1]))


class Trainer(types.SimpleNamespace):
    """What TRL's loss methods read of their trainer besides the options."""

    def __init__(self, **options):
        same = lambda x, *args, **kwargs: x  # noqa: E731
        accelerator = types.SimpleNamespace(
            device="cpu", gather_for_metrics=same, gather=same, reduce=same, num_processes=1
        )
        super().__init__(
            model=torch.nn.Linear(1, 1),
            accelerator=accelerator,
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            current_gradient_accumulation_steps=1,
            _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
            _total_train_tokens=0,
            **options,
        )


def ends(lengths, width=T):
    return (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()


def ppo(trl):
    """Rewards, GAE and both losses: the lines of `PPOTrainer.train`, padding included."""
    module = importlib.import_module("trl.experimental.ppo.ppo_trainer")
    torch.manual_seed(0)
    cases = {}
    for name, lengths in (("full", [T] * B), ("padded", [2, T, 4, T - 1])):
        scope = dict(vars(module), sequence_lengths=torch.tensor(lengths) - 1)
        given = {
            key: torch.randn(B, T) for key in ("logprobs", "ref_logprobs", "values", "vpred_new")
        }
        for key in ("logprobs", "ref_logprobs"):
            given[key] = -given[key].abs()
        given["new_logprobs"] = given["logprobs"] + 0.4 * torch.randn(B, T)
        given["scores"] = torch.tensor([0.25, 0.9, -1.7, 1.7])
        args = types.SimpleNamespace(
            kl_estimator="k1", kl_coef=0.07, whiten_rewards=False, gamma=0.97, lam=0.9,
            cliprange=0.2, cliprange_value=0.3,
        )  # fmt: skip
        scope |= {key: value.clone() for key, value in given.items()}
        scope |= {"args": args, "responses": torch.zeros(B, T), "empty_cache": lambda: None}
        exec(own_lines(module.PPOTrainer.train, "response_idxs =", "returns ="), scope)
        plain_advantages = scope["advantages"].clone()
        lines = ("advantages = masked_whiten", "advantages = torch.masked_fill")
        exec(own_lines(module.PPOTrainer.train, *lines), scope)
        scope |= {
            "micro_batch_inds": torch.arange(B), "mb_advantage": scope["advantages"],
            "mb_logprobs": scope["logprobs"], "mb_return": scope["returns"],
            "mb_values": scope["values"],
            "new_logprobs": torch.masked_fill(scope["new_logprobs"], scope["padding_mask"], 1.0),
            "vpred": torch.masked_fill(scope["vpred_new"], scope["padding_mask_p1"], 0),
        }  # fmt: skip
        exec(own_lines(module.PPOTrainer.train, "vpredclipped =", "pg_loss ="), scope)
        exec(own_lines(module.PPOTrainer.train, "pg_clipfrac =", ")"), scope)
        keep = ("rewards", "returns", "advantages", "pg_loss", "vf_loss", "pg_clipfrac")
        keep += ("vf_clipfrac",)
        cases[name] = {
            "given": given,
            "options": vars(args),
            "mask": (~scope["padding_mask"]).long(),
            "mask_p1": (~scope["padding_mask_p1"]).long(),
            "out": {key: scope[key] for key in keep} | {"advantages_plain": plain_advantages},
        }
    mask = cases["padded"]["mask"].bool()
    x = torch.randn(B, T) * 3 + 2
    white = {
        "x": x,
        "mask": mask.long(),
        "out": module.masked_whiten(x, mask),
        "out_unshifted": module.masked_whiten(x, mask, shift_mean=False),
    }
    return {"source": f"trl {trl.__version__}", "cases": cases, "whiten": white}


def pair_batch():
    torch.manual_seed(1)
    logits = 2 * torch.randn(2 * B, T + 1, V)
    ids = torch.randint(0, V, (2 * B, T + 1))
    mask = torch.cat([torch.zeros(2 * B, 1).long(), ends([2, T, 4, 5, 3, T, 6, 1])], dim=1)
    logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    sums = (logps * mask[:, 1:]).sum(1)
    return logits, ids, mask, logps, sums + torch.randn(2 * B)


def dpo(trl):
    """Every variant that TRL has, called on logits."""
    from trl import DPOTrainer

    logits, ids, mask, logps, ref = pair_batch()
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": mask,
        "ref_chosen_logps": ref[:B],
        "ref_rejected_logps": ref[B:],
    }
    out = {}
    for name, variant, smoothing in (
        ("sigmoid", "sigmoid", 0.0),
        ("hinge", "hinge", 0.0),
        ("ipo", "ipo", 0.0),
        ("exo", "exo_pair", 0.1),
        ("robust", "robust", 0.2),
    ):
        trainer = Trainer(
            beta=0.3, loss_types=[variant], loss_weights=[1.0], label_smoothing=smoothing,
            f_divergence_type="reverse_kl", ld_alpha=None, use_weighting=False,
        )  # fmt: skip
        model = lambda **kwargs: types.SimpleNamespace(logits=logits.clone())  # noqa: E731
        loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
        metrics = trainer._metrics["train"]
        out[name] = {
            "label_smoothing": smoothing,
            "loss": loss,
            "accuracy": metrics["rewards/accuracies"][-1],
            "margin": metrics["rewards/margins"][-1],
            "chosen": metrics["rewards/chosen"][-1],
        }
    sums = (logps * mask[:, 1:]).sum(1)
    delta = (sums[:B] - ref[:B]) - (sums[B:] - ref[B:])
    cdpo = -0.9 * F.logsigmoid(0.3 * delta) - 0.1 * F.logsigmoid(-0.3 * delta)
    given = {"logits": logits, "ids": ids, "logps": logps, "mask": mask[:, 1:], "ref": ref}
    return {
        "source": f"trl {trl.__version__} (cdpo: formula in torch, as TRL ignores smoothing there)",
        "beta": 0.3,
        "given": given,
        "out": out | {"cdpo": {"label_smoothing": 0.1, "loss": cdpo.mean()}},
    }


def kto(trl):
    from trl import KTOTrainer

    logits, ids, mask, logps, ref = pair_batch()
    torch.manual_seed(2)
    labels = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    kl, ref_kl = -torch.rand(2 * B) * 9, -torch.rand(2 * B) * 12
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask,
        "label": labels, "ref_logps": ref, "ref_KL_logps": ref_kl,
    }  # fmt: skip
    trainer = Trainer(
        beta=0.2, loss_type="kto", desirable_weight=1.3, undesirable_weight=0.8, calculate_KL=True
    )
    trainer._compute_kl_logps = lambda model, batch: kl
    model = lambda **kwargs: types.SimpleNamespace(logits=logits.clone())  # noqa: E731
    loss = KTOTrainer._compute_loss(trainer, model, batch, False)
    metrics = trainer._metrics["train"]
    return {
        "source": f"trl {trl.__version__}",
        "given": {"logps": logps, "mask": mask[:, 1:], "ref": ref, "labels": labels, "kl": kl,
                  "ref_kl": ref_kl},
        "out": {"loss": loss, "kl": metrics["kl"][-1], "chosen": metrics["rewards/chosen"][-1],
                "rejected": metrics["rewards/rejected"][-1]},
    }  # fmt: skip


def odds_and_simpo(trl):
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    _, _, mask, logps, _ = pair_batch()
    mask = mask[:, 1:]
    means = (logps * mask).sum(1) / mask.sum(1)
    ratio, *_ = ORPOTrainer.odds_ratio_loss(Trainer(beta=0.4), means[:B], means[B:])
    # Over the chosen response, Eq. 2 of the paper; ORPOTrainer takes it over prompt and response.
    nll = -(logps * mask)[:B].sum() / mask[:B].sum()
    options = dict(loss_type="simpo", alpha=0.0, simpo_gamma=0.8, beta=2.5, label_smoothing=0.05)
    losses, *_ = CPOTrainer.cpo_loss(Trainer(**options), means[:B], means[B:])
    return {
        "source": f"trl {trl.__version__} (orpo: its odds ratio; NLL in torch, of the response)",
        "given": {"logps": logps, "mask": mask},
        "orpo": {"beta": 0.4, "loss": nll - ratio.mean(), "nll": nll},
        "simpo": {"beta": 2.5, "gamma": 0.8, "label_smoothing": 0.05, "loss": losses.mean()},
    }


def grpo(trl):
    """`GRPOTrainer._compute_loss` for its aggregations, and GSPO's sequence ratio."""
    from trl import GRPOTrainer
    from trl.trainer.utils import nanstd

    torch.manual_seed(3)
    old = -torch.rand(B, T) * 3
    new = old + 0.3 * torch.randn(B, T)
    ref = old - 0.5 * torch.rand(B, T, generator=torch.Generator().manual_seed(5))
    mask = ends([2, T, 4, 5])
    rewards = torch.tensor([0.25, 0.9, 1.7, -0.6])
    groups = rewards.view(-1, 2)
    centred = rewards - groups.mean(1).repeat_interleave(2)
    advantages = centred / (nanstd(groups, dim=1).repeat_interleave(2) + 1e-4)
    inputs = {
        "prompt_ids": torch.zeros(B, 1).long(), "prompt_mask": torch.ones(B, 1).long(),
        "completion_ids": torch.zeros(B, T).long(), "completion_mask": mask,
        "advantages": advantages, "old_per_token_logps": old,
        "ref_per_token_logps": ref, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    out = {}
    for name, loss_type, level, low, high, beta in (
        ("grpo", "grpo", "token", 0.2, 0.2, 0.0),
        ("dapo", "dapo", "token", 0.2, 0.28, 0.0),
        ("dr_grpo", "dr_grpo", "token", 0.2, 0.2, 0.0),
        ("gspo", "grpo", "sequence", 0.05, 0.08, 0.0),
        ("grpo_kl", "grpo", "token", 0.2, 0.2, 0.4),
        ("dapo_kl", "dapo", "token", 0.2, 0.28, 0.4),
        ("dr_grpo_kl", "dr_grpo", "token", 0.2, 0.2, 0.4),
        ("gspo_kl", "grpo", "sequence", 0.05, 0.08, 0.4),
    ):
        # The KL without the ratio that later versions multiply it by: that of GSPO is of the row.
        args = types.SimpleNamespace(
            delta=None, steps_per_generation=1, use_bias_correction_kl=False
        )
        trainer = Trainer(
            loss_type=loss_type, importance_sampling_level=level, beta=beta, epsilon_low=low,
            epsilon_high=high, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
            use_vllm=False, max_completion_length=T + 3, _entropy_bonus_enabled=False, args=args,
        )  # fmt: skip
        trainer._get_per_token_logps_and_entropies = lambda *a, **k: (new, torch.zeros(B, T), None)
        loss = GRPOTrainer._compute_loss(trainer, None, inputs)
        out[name] = {"loss": loss, "clip_low": low, "clip_high": high, "beta": beta}
    leave_one_out = rewards - (groups.sum(1).repeat_interleave(2) - rewards) / 1
    return {
        "source": f"trl {trl.__version__} (advantages: its formulas in torch, with its nanstd)",
        "given": {"old": old, "new": new, "ref": ref, "mask": mask, "rewards": rewards},
        "max_completion_length": T + 3,
        "advantages": advantages,
        "leave_one_out": leave_one_out,
        "out": out,
    }


def rloo(trl):
    """The lines of `RLOOTrainer` from rewards and KL to advantages, and its `_compute_loss`."""
    module = importlib.import_module("trl.trainer.rloo_trainer")
    torch.manual_seed(6)
    old = -torch.rand(B, T) * 3
    # Two of the four ratios lie where the clip decides.
    new = old + torch.tensor([[-0.1], [0.1], [0.2], [-0.02]])
    ref = old - 0.5 * torch.rand(B, T)
    mask, rewards = ends([2, T, 4, 5]), torch.tensor([0.25, 0.9, 1.7, -0.6])
    trainer = Trainer(beta=0.07, normalize_advantages=False, epsilon_low=0.1, epsilon_high=0.15)
    scope = dict(vars(module), self=trainer, rewards=rewards.clone(), num_generations=2)
    scope |= {"old_per_token_logps": old, "ref_per_token_logps": ref, "completion_mask": mask}
    scope["gather"] = lambda x: x
    for lines in (
        ("per_token_kl =", "rewards = rewards - self.beta"),
        ("grouped_rewards =", "advantages = rewards - baselines"),
    ):
        exec(own_lines(module.RLOOTrainer._generate_and_score_completions, *lines), scope)
    inputs = {
        "prompt_ids": torch.zeros(B, 1).long(), "prompt_mask": torch.ones(B, 1).long(),
        "completion_ids": torch.zeros(B, T).long(), "completion_mask": mask,
        "advantages": scope["advantages"], "old_logps": (old * mask).sum(1),
    }  # fmt: skip
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (new, torch.zeros(B, T), None)
    return {
        "source": f"trl {trl.__version__}",
        "given": {"old": old, "new": new, "ref": ref, "mask": mask, "rewards": rewards},
        "beta": 0.07, "clip_low": 0.1, "clip_high": 0.15,
        "advantages": scope["advantages"],
        "loss": module.RLOOTrainer._compute_loss(trainer, None, inputs),
    }  # fmt: skip


def reward(trl):
    """`RewardTrainer.compute_loss`: the Bradley-Terry loss of a reward model."""
    from trl import RewardTrainer

    torch.manual_seed(7)
    logits = 2 * torch.randn(2 * B, 1)
    trainer = Trainer(args=types.SimpleNamespace(center_rewards_coefficient=None))
    model = lambda **kwargs: types.SimpleNamespace(logits=logits)  # noqa: E731
    inputs = {"attention_mask": torch.ones(2 * B, 1)}
    loss = RewardTrainer.compute_loss(trainer, model, inputs)
    metrics = trainer._metrics["train"]
    return {
        "source": f"trl {trl.__version__}",
        "better": logits[:B, 0], "worse": logits[B:, 0], "loss": loss,
        "accuracy": metrics["accuracy"][-1], "margin": metrics["margin"][-1],
    }  # fmt: skip


def torch_only(trl):
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    torch.manual_seed(4)
    x = torch.tensor([-120.0, -3.0, -0.2, 0.0, 0.7, 4.0, 95.0])
    y = torch.tensor([0.0, 1.0, 0.2, 0.5, 0.9, 1.0, 0.0])
    w = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 3.0, 0.25])
    bce = F.binary_cross_entropy_with_logits(x, y, weight=w, reduction="sum") / w.sum()
    each = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    hidden = torch.randn(3, 5, 8, requires_grad=True)
    kernel = torch.randn(8, V, requires_grad=True)
    ids = torch.randint(0, V, (3, 5))
    weights = torch.randn(3, 5)
    logits = hidden @ kernel / 0.7
    logps = selective_log_softmax(logits, ids)
    (logps * weights).sum().backward()
    chunk = {
        "hidden": hidden, "kernel": kernel, "ids": ids, "weights": weights, "temperature": 0.7,
        "logps": logps, "entropy": entropy_from_logits(logits.detach()),
        "dhidden": hidden.grad, "dkernel": kernel.grad,
    }  # fmt: skip
    a, b = torch.randn(6), torch.randn(6)
    s, ls = torch.sigmoid, F.logsigmoid
    rpo = {
        "a": a,
        "b": b,
        "sq": ((a - b) ** 2).mean(),
        "bwd_kl": (s(b) * (ls(b) - ls(a)) + s(-b) * (ls(-b) - ls(-a))).mean(),
        "fwd_kl": (s(a) * (ls(a) - ls(b)) + s(-a) * (ls(-a) - ls(-b))).mean(),
    }
    return {
        "source": f"torch {torch.__version__}, selective_log_softmax of trl {trl.__version__}; "
        "rpo: NeMo-Aligner's formulas in torch",
        "bce": {"logits": x, "targets": y, "weights": w, "each": each, "loss": bce},
        "logprobs": chunk,
        "rpo": rpo,
    }


def main():
    import trl

    parts = (ppo, dpo, kto, odds_and_simpo, grpo, rloo, reward, torch_only)
    goldens = {part.__name__: plain(part(trl)) for part in parts}
    rounded = json.loads(json.dumps(goldens), parse_float=lambda text: float(f"{float(text):.9g}"))
    OUT.write_text(json.dumps(rounded, indent=None, separators=(",", ":")) + "\n")
    print(OUT.name, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
