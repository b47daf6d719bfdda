"""The verifiers as a reward of TRL's own trainer: one GRPO step, in a process of its own."""

import importlib.util
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="pip install trl runs this"),
    pytest.mark.slow,  # importing the trainer takes longer than its step
]
STEP = """
import sys

import datasets, torch, transformers, trl
from gapo_jax.constraints import reward
from gapo_jax.data.tiny_tokenizer import character_tokenizer

torch.manual_seed(0)
tokenizer = character_tokenizer()
shape = transformers.LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
rows = [
    {"prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": ["{}"]},
    {"prompt": "Anything.", "instruction_id_list": ["no:such"], "kwargs": ["{}"]},
]
settings = trl.GRPOConfig(
    output_dir=sys.argv[1], use_cpu=True, max_steps=1, report_to=[], logging_steps=1, bf16=False,
    per_device_train_batch_size=4, num_generations=2, max_completion_length=8, save_strategy="no",
)
trainer = trl.GRPOTrainer(
    model=transformers.LlamaForCausalLM(shape), args=settings, reward_funcs=[reward],
    processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(rows),
)
trainer.train()
(line,) = [line for line in trainer.state.log_history if "rewards/reward/mean" in line]
# Of the row that cannot be verified it says nothing, which TRL leaves out of the mean.
assert 0 <= line["rewards/reward/mean"] <= 1, line
print("mean", line["rewards/reward/mean"])
"""


def test_a_grpo_step_of_trl_with_our_reward(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", STEP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean " in done.stdout and "rows cannot be verified" in done.stderr
