"""Offline updates of a whole run against a plain version, under a sampling temperature that must
not matter to them."""

import math

import numpy as np
import plain_parts
import plain_run
import recorded_run

from gapo_jax.train.offline import sgpo

SYSTEM = [1, *recorded_run.ids_of("Be.\n"), 1]
OFFLINE = {
    "offline__steps_per_round": 3,
    "offline__batch_size": 2,
    "offline__optim__learning_rate": 0.05,
    "offline__optim__warmup_steps": 1,
    "offline__optim__schedule": "cosine",
    "offline__optim__eps": 1e-2,
}


def _rows(fields):
    """(prompt ids, response ids) of the rows of a batch."""
    batch = fields["batch"].rows
    for tokens, mask, response in zip(batch.tokens_BT, batch.mask_BT, batch.response_mask_BR):
        ids, count = tokens[mask > 0].tolist(), int(response.sum())
        yield ids[:-count], ids[-count:]


def _asked(prompt):
    return [*SYSTEM, *recorded_run.ids_of(f"{prompt}\n>")]


def _dpo(lists, refs, beta):
    """Mean of -log sigmoid(beta (rho chosen - rho rejected)) over neighbouring rows."""
    rho = [sum(x) - ref for x, ref in zip(lists, refs, strict=True)]
    gaps = [beta * (a - b) for a, b in zip(rho[::2], rho[1::2], strict=True)]
    return sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps)


def test_dpo_scores_at_temperature_1_with_one_schedule_for_all_rounds(tmp_path, monkeypatch):
    """Six updates in two rounds: every loss, every pair and every parameter."""
    config = recorded_run.make_config(method="dpo", **OFFLINE)
    assert config.sampling.temperature != 1
    record = recorded_run.play(config, tmp_path, monkeypatch)
    plain = plain_run.Plain(record)
    beta = config.dpo.beta
    optimizer, seen = plain_parts.AdamW(config.offline.optim), []
    assert [name for name, _ in record.events] == ["offline"] * 6
    for step, (_, fields) in enumerate(record.events):
        texts = list(_rows(fields))
        for chosen, rejected in zip(texts[::2], texts[1::2], strict=True):
            (pair,) = (
                pair for pair in recorded_run.PAIRS if chosen[0] == _asked(pair.prompt_accepted)
            )
            answer = [*recorded_run.ids_of(pair.response), recorded_run.EOS]
            assert rejected[0] == _asked(pair.prompt_rejected)
            assert chosen[1] == rejected[1] == answer
            seen.append(pair.task)
        params = plain.full_policy()
        logprobs, _ = plain_parts.token_logprobs(params, texts, 1.0)
        refs = [x.sum() for x in plain_parts.token_logprobs(plain.ref, texts, 1.0)[0]]
        loss = _dpo(logprobs, refs, beta)
        assert abs(float(fields["metrics"]["policy/loss"]) - loss) < 1e-4
        slopes = plain_parts.slopes_of(lambda lists, refs=refs: _dpo(lists, refs, beta), logprobs)
        gradients = plain_parts.logprob_gradient(params, texts, 1.0, slopes)
        gradients = plain_parts.leaves(plain.trained(gradients))
        rate = plain_parts.rate_at(config.offline.optim, step, 6)
        plain.policy = optimizer.update(plain.policy, gradients, rate)
        plain.policy = plain.same(plain.policy, fields["params"], atol=5e-4)
    # Ten pairs, two an update: five updates see all, the sixth begins anew.
    assert sorted(seen[:10]) == sorted(pair.task for pair in recorded_run.PAIRS)


def test_the_reference_of_sgpo_is_the_policy_of_its_first_stage_at_temperature_1(
    tmp_path, monkeypatch
):
    records = [
        {"prompt": f"q{i}", "response": "bad", "reference": "good", "refined": f"fine {i}",
         "ended": True, "verdict": "kept"}
        for i in range(4)
    ]  # fmt: skip
    monkeypatch.setattr(sgpo, "improver_records", lambda ctx: records)
    monkeypatch.setattr(sgpo, "comparison_verdict", lambda *texts: "kept")
    options = {**OFFLINE, "offline__optim__warmup_steps": 0}
    config = recorded_run.make_config(
        method="sgpo", sgpo__prompts=4, sgpo__improver_learning_rate=0.05, **options
    )
    record = recorded_run.play(config, tmp_path, monkeypatch)
    plain = plain_run.Plain(record)
    updates = [fields for name, fields in record.events if name == "offline"]
    assert len(updates) == 6
    plain.policy = plain_parts.leaves(updates[2]["params"])
    reference = plain.full_policy()
    # Both sides are written by that policy, the second with the first in its prompt.
    samples = [fields for name, fields in record.events if name == "sample"]
    for fields in samples:
        plain.same(plain_parts.leaves(reference), fields["params"])
    keys = [row["key"] for fields in samples for row in fields["rows"][:4]]
    assert len(samples) == 2 and len(set(keys)) == 8
    for step, fields in enumerate(updates[3:]):
        texts = list(_rows(fields))
        refs = [float(x.sum()) for x in plain_parts.token_logprobs(reference, texts, 1.0)[0]]
        np.testing.assert_allclose(fields["batch"].ref_B, refs, rtol=1e-3, atol=1e-3)
        logprobs, _ = plain_parts.token_logprobs(plain.full_policy(), texts, 1.0)
        loss = _dpo(logprobs, refs, config.sgpo.beta)
        assert abs(float(fields["metrics"]["policy/loss"]) - loss) < 1e-3
        assert (abs(loss - math.log(2)) < 1e-4) == (step == 0)
        plain.policy = plain_parts.leaves(fields["params"])
