"""Planning an adapter imports nothing that the libraries only take along, in a process as a user's."""

import subprocess
import sys

PLAN = """
import sys
from finetune_api.messages import Task
from finetune_trainer.prepare.plan.adapt import adapted
from finetune_trainer.prepare.plan.built import built_in_16_bits, quiet

sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
with quiet():
    model = built_in_16_bits({"model_type": "llama", "vocab_size": 100, **sizes}, Task.CAUSAL_LM)
    adapted(model, Task.CAUSAL_LM, {"r": 8, "target_modules": "all-linear"}, ["q_proj"])
unused = ("bitsandbytes", "datasets", "pandas", "scipy", "sklearn")
print([name for name in unused if name in sys.modules], "peft" in sys.modules)
"""


def test_a_plan_with_an_adapter_imports_no_package_that_it_does_not_use() -> None:
    told = subprocess.run([sys.executable, "-c", PLAN], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[] True"
