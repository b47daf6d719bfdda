"""Every configuration of an offline method: two rounds, a kill, the rest; who moved and who not."""

import json

import jax
import numpy as np
import pytest

from gapo_jax.config import finalize
from gapo_jax.config.presets import tiny
from gapo_jax.data.batching import batch_at
from gapo_jax.evaluate.console import discriminator_line
from gapo_jax.io import read_jsonl
from gapo_jax.methods import METHODS as REGISTRY
from gapo_jax.methods import asks_discriminator, method_of
from gapo_jax.options import SGPOConfig
from gapo_jax.rng import Stream
from gapo_jax.train import main, rounds, summary
from gapo_jax.train.build import build_models, build_steps
from gapo_jax.train.metrics import mean_metrics
from gapo_jax.train.offline import inverse_q, loop, sgpo
from gapo_jax.train.runtime import RunStopped, StopRequest
from gapo_jax.types import PromptRow

DATA = ("bootstrap.jsonl", "pairs.jsonl", "pairs_heldout.jsonl")
PROCESS = ("time", "throughput/", "compile/")
# Those of the configurations that are cases here.
METHODS = tuple(name for name, method in REGISTRY.items() if method.loop == "offline")


class Killed(Exception):
    """Stands for a kill between the end of a round and its checkpoint."""


@pytest.fixture(scope="module")
def models():
    return build_models(finalize(tiny("dpo")))


@pytest.fixture(scope="module")
def data(models, tmp_path_factory):
    """(workdir, prompts) that all cases start from: bootstrap and pairs depend on no method."""
    workdir = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "build_models", lambda config, discriminator=True: models)
        opened, _ = main.open_run(finalize(tiny("dpo")), workdir, StopRequest())
    _close(opened)
    return workdir, opened.prompts


def _close(opened):
    opened.writer.close()
    opened.checkpointer.close()


@pytest.fixture
def opener(models, data, monkeypatch):
    """Opens a run with the networks and compiled steps of the one before it."""
    made, prompts = data
    built = {}

    def steps(config, models, num_pairs, widths):
        if built.get("config") != config:
            built.update(config=config, steps=build_steps(config, models, num_pairs, widths))
        return built["steps"]

    monkeypatch.setattr(main, "build_models", lambda config, discriminator=True: models)
    monkeypatch.setattr(main, "make_all_prompts", lambda config, models: prompts)
    monkeypatch.setattr(main, "build_steps", steps)

    def start(config, workdir):
        workdir.mkdir(exist_ok=True)
        for name in DATA:
            (workdir / name).write_text((made / name).read_text())
        return main.open_run(config, workdir, StopRequest())

    return start


def _lines(workdir, number):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith(PROCESS)}
        for line in lines
        if line["round"] == number and line["phase"] != "save"
    ]


def _arrays(state):
    state = state.replace(key=jax.random.key_data(state.key))
    return {jax.tree_util.keystr(p): np.array(x) for p, x in jax.tree.leaves_with_path(state)}


def test_two_rounds_a_kill_and_the_rest(opener, models, tmp_path, case, smallest, monkeypatch):
    config = smallest(*case)
    opened, state = opener(config, tmp_path)
    start, base = _arrays(state), jax.tree.map(np.array, models.ref_params)
    straight, save = [], rounds.save

    def kill(ctx, state, finished):
        if finished == 2:
            straight.append(_arrays(state))
            raise Killed
        return save(ctx, state, finished)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(rounds, "save", kill)
        loop.train(opened, state)
    _close(opened)
    before = _lines(tmp_path, 2)
    opened, state = opener(config, tmp_path)
    assert int(state.round) == 1
    resumed = _arrays(loop.train(opened, state))
    _close(opened)
    # Bit for bit what the killed run had, in every array and every metric.
    assert resumed.keys() == straight[0].keys()
    for path, value in resumed.items():
        np.testing.assert_array_equal(value, straight[0][path], err_msg=path)
    assert before and _lines(tmp_path, 2) == before
    moved = {path.split(".")[1] for path in start if (start[path] != resumed[path]).any()}
    network = method_of(config).trains
    warmed_up = {"discriminator"} if asks_discriminator(config) else set()
    assert moved == {network, "round"} | warmed_up
    assert all(line["phase"] in ("rollout", network) for line in before)
    jax.tree.map(np.testing.assert_array_equal, base, jax.tree.map(np.array, models.ref_params))
    if config.method == "sgpo":  # how many the filters kept, and why the others were left out
        assert len(read_jsonl(tmp_path / "sgpo_improver.jsonl")) <= config.sgpo.prompts
        (counts,) = (line for line in before if "sgpo/asked" in line)
        reasons = [counts.get(f"sgpo/{name}", 0.0) for name in ("kept", "same", "length")]
        assert sum(reasons) == counts["sgpo/asked"] == config.sgpo.prompts
        # The reference is the policy that stage 1 left: at its first update there is no margin.
        (learned,) = (line for line in before if "pref/loss" in line)
        assert learned["pref/loss"] == pytest.approx(np.log(2), abs=1e-5)
        # Refinements are scored under the plain prompt, not under the request to improve.
        plain = {row.prompt for row in opened.prompts.train}
        assert {r["prompt"] for r in read_jsonl(tmp_path / "sgpo_reference.jsonl")} <= plain


def test_what_the_discriminator_makes_of_held_out_pairs(tmp_path):
    assert summary.discriminator_on_pairs(_written(tmp_path, [{"policy/loss": 1.0}])) == {}
    rows = [{"disc/heldout_accuracy": x, "disc/heldout_pair_order": 1.0} for x in (0.5, 0.6, 0.75)]
    measured = summary.discriminator_on_pairs(_written(tmp_path, [*rows, {"policy/loss": 1.0}]))
    assert measured["first"] == {"accuracy": 0.5, "pair_order": 1.0}
    assert "right 50% -> 75%, accepted above rejected 100% -> 100%" in discriminator_line(measured)


def _written(workdir, rows):
    (workdir / "metrics.jsonl").write_text(
        "".join(json.dumps(row | {"step": 0}) + "\n" for row in rows)
    )
    return workdir


def test_another_seed_gives_other_batches_and_every_row_is_used():
    rows = [batch_at(0, Stream.OFFLINE_ORDER, step=step, n=20, batch_size=8) for step in range(5)]
    assert np.bincount(np.concatenate(rows)).tolist() == [2] * 20
    assert (
        rows[0].tolist() != batch_at(1, Stream.OFFLINE_ORDER, step=0, n=20, batch_size=8).tolist()
    )


def test_a_loss_that_is_not_finite_is_seen_and_stops_the_run(opener, tmp_path, smallest):
    found = mean_metrics([{"policy/loss": np.nan, "disc/acc_generated": np.nan}])
    assert list(found) == ["policy/loss"]
    opened, _ = opener(smallest("dpo", "tiny"), tmp_path)
    with pytest.raises(RunStopped, match=r"policy/loss is nan in round 3.*config.offline.optim"):
        loop.check(opened, found, 3)
    with pytest.raises(RunStopped, match=r"0.700 a token.*kl_limit=0.5"):
        loop.check(opened, {"kl/ref": 0.7}, 3)
    _close(opened)


def _slow_distance(a, b):
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i, j in np.ndindex(len(a), len(b)):
        change = table[i, j] + (a[i] != b[j])
        table[i + 1, j + 1] = min(change, table[i, j + 1] + 1, table[i + 1, j] + 1)
    return table[len(a), len(b)]


def test_the_conditions_that_inverse_q_contrasts():
    row = PromptRow("k", "Name a tea. No commas.", "Name a tea.", ())
    config = tiny("inverse_q")
    assert inverse_q.other_prompt(config, row) == (row.task, None)
    config.inverse_q.contrast, config.inverse_q.system_prompt = "system", "Be exact."
    assert inverse_q.other_prompt(config, row) == (row.prompt, "Be exact.")


def test_edit_distance():
    assert sgpo.edit_distance("kitten", "sitting") == pytest.approx(3 / 7)
    assert sgpo.edit_distance("", "né") == 1 and sgpo.edit_distance("", "") == 0
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = ("".join(rng.choice(list("ab c"), rng.integers(0, 12))) for _ in range(2))
        assert sgpo.edit_distance(a, b) * max(len(a), len(b), 1) == pytest.approx(
            _slow_distance(a, b)
        )


def test_filters_of_sgpo():
    """The band of edit distances, no copies, nearer to the reference; like lengths."""
    settings = SGPOConfig(min_edit=0.1, max_edit=0.5, max_length_ratio=2.0)

    def verdict(text):
        return sgpo.refinement_verdict(settings, text, "a red cat sat", "a red dog sat!")

    assert verdict("a red dog sat") == "kept"  # 3 of 13 letters from the response, 1 off the other
    assert verdict(" a red dog sat! ") == "copy"
    assert verdict("a red cat sat.") == "too_close"  # 1 of 14
    assert verdict("nothing of it at all") == "too_far"
    assert verdict("a red cow sta") == "not_nearer"
    pairs = {
        ("one two", "one"): "kept",
        ("one two three", "one"): "length",
        ("same ", "same"): "same",
        ("", "one"): "same",
    }
    for (chosen, rejected), wanted in pairs.items():
        assert sgpo.comparison_verdict(settings, chosen, rejected) == wanted
