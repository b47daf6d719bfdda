"""GAPO on SmolLM2-135M-Instruct against MiniLM, from nothing to a report on 2 CPU cores.

    bash scripts/quickstart.sh
    python scripts/train.py --config configs/gapo_quickstart.py [--config.seed=1 --workdir DIR]

Ten rounds of 12 prompts x 8 samples; of each prompt's samples the two best and the two worst are
learned from. The top 10 of 30 layers are trained; the lower ones run once a round for reference,
old policy and update together. The discriminator is warmed up on 800 preferential pairs (one
epoch) and updated in every round on pairs and on the generator's text, labelled by the verifiers;
it scores a round's text after that update. Rewards are its probabilities, normalised among the
samples of a prompt.

Which constraint types: those that this discriminator learns to judge within such a warm-up.
Measured on 199 held-out pairs after 1,500 training pairs of nine types (accepted prompt scored
above rejected): postscript 1.00, title 1.00, end_checker .90, no_comma .73, bullets .68,
number_words .68; number_sentences .57, existence .55, forbidden_words .48 were no better than a
coin, so their reward would be noise and they are left out here (add them to `data.types` with 4
times the pairs). Quotation never occurs by itself, so there is nothing to reinforce.

Measured 2026-11-22, 2 CPU cores, jax 0.10.2 (held-out constraint accuracy, strict, percentage
points, 95% interval of the paired bootstrap over 96 prompts a set):

| seed | topics, instruction | topics, prompt | phrasings, instruction | phrasings, prompt |
|---|---|---|---|---|
| 2 | +20.6 [+10.6, +30.3] | +19.8 [+8.3, +31.2] | +17.3 [+6.8, +27.4] | +17.7 [+6.2, +29.2] |
| 2* | +11.0 [+2.1, +20.2] | +11.5 [+1.0, +21.9] | +6.0 [-3.1, +15.2] | +4.2 [-5.2, +13.5] |
| 0* | +23.9 [+13.2, +34.6] | +21.9 [+8.3, +35.4] | +28.9 [+18.1, +40.0] | +26.0 [+15.6, +37.5] |

(*) with the discriminator's old rates, 3e-4 in the warm-up and 1e-4 in the rounds; now they are
1.5e-4 and 5e-5. At the old ones seed 2's discriminator fell back to a constant: it ordered 66% of
held-out pairs after the warm-up (78% now), and its logits for the samples of one prompt differed by
.03, so that there was no reward to learn from. Seeds 0 and 1 have not been run at the present
rates; after the warm-up alone seed 0 orders 87% of held-out pairs (83% before).

Time: seed 2 is the whole of `bash scripts/quickstart.sh --config.seed=2` in a fresh clone, 26
minutes beside other work on the same two cores, with 30 minutes of processor time in all and 6.0 GB
at the peak; an earlier and slower version took 17 minutes 23 seconds on a quiet machine.

What it learns is titles, postscripts and to do without commas; exact endings stay where they were,
since the starting model almost never writes one and there is nothing to reinforce. How it gets
hacked: without the penalty on repetition (`discriminator.max_repetition`) some answers were nothing
but their postscript, nine times over (share of repeated 3-grams .01 -> .11); with it that share is
.02 before and .04 after. Answers become shorter (26 words -> 14), which the end penalty furthers
(at .25 instead of .1 they lost bullets and minimum lengths), and the share that echoes the prompt
stays where it was.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = smollm2_rounds("gapo", "gapo_quickstart")
    config.discriminator.score_with = "post"
    config.ppo.clip_high = 0.28
    config.reward.standardise, config.reward.squash = "group", "sigmoid"
    return config
