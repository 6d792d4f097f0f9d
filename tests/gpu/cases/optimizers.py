"""Cases: optimizers, kernels and compiled layers that only CUDA can prove; a CPU rehearses those that it can run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_api.optimizers import OPTIMIZERS
from finetune_api.plan import Plan, PlannedCompilation
from finetune_trainer.prepare.plan.engine import deepspeed_config, optimizer_block
from finetune_trainer.prepare.plan.kernels import kernels_of
from finetune_trainer.prepare.plan.optimizer_choice import ChosenOptimizer
from tests.gpu.case import Bench, Case
from tests.gpu.cases.exactness import DISTURBED, HALF, STEPS, farthest
from tests.gpu.models import SMALL, TINY, make_llama
from tests.gpu.ranks import Trained, in_child, train
from tests.local.harness import make_plan, write_dataset
from tests.support.plans import revised

EIGHT_BITS = 5e-2  # relative, of a loss, beside that of AdamW with float32 states
KERNELS = 2e-2  # relative, of a loss: bfloat16, other orders of sums


def changed(bench: Bench, name: str, changes: Callable[[Plan], Plan], resume: Path | None = None) -> Trained:
    """Return a training of all weights on one rank, by a changed plan; model and rows are made once a case."""
    model = bench.folder / "model"
    if not model.exists():
        in_child(lambda: make_llama(model, TINY if bench.tiny else SMALL))
        write_dataset(bench.folder / "data", Task.CAUSAL_LM)
    given: dict[str, Any] = {} if bench.tiny else {"bf16": True}
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, world=1, max_steps=STEPS, training=given, learning_rate=1e-3)
    plan = revised(plan, deepspeed=deepspeed_config(2, None, given))
    made = train(changes(plan), model, bench.folder / "data", bench.folder / name, resume)
    print(made.log, flush=True)
    bench.note(**{f"{name} last loss": made.losses().get(STEPS), f"{name} peak MiB": made.peak_bytes() >> 20})
    bench.expect(made.code == ExitCode.OK, f"the training {name} ended with {made.code}: {made.errors()}")
    return made


def as_planned(plan: Plan) -> Plan:
    """Return a plan as it is."""
    return plan


def with_optimizer(name: str) -> Callable[[Plan], Plan]:
    """Return a change of a plan: another optimizer, at AdamW's rate or a published multiple of it."""
    spec = OPTIMIZERS[name]
    arguments = {"betas": list(spec.betas)} if spec.betas else {}
    chosen = ChosenOptimizer(name, arguments)

    def change(plan: Plan) -> Plan:
        rate = plan.schedule.learning_rate * (spec.rate or 1)
        block = optimizer_block(chosen, rate, SMALL["hidden_size"])
        config = deepspeed_config(2, None, plan.engine.training, optimizer=block)
        return revised(plan, deepspeed=config, optimizer=chosen.planned, learning_rate=rate)

    return change


def small_states(bench: Bench) -> None:
    """Compare 8-bit and paged AdamW with AdamW, and each with its own run after a resume."""
    whole = changed(bench, "adamw_torch", as_planned)
    names = ["adamw_bnb_8bit", "lion_8bit"] + ([] if bench.tiny else ["paged_adamw_8bit", "paged_adamw_32bit"])
    for name in names:
        made = changed(bench, name, with_optimizer(name))
        stopped = bench.folder / name / "node-0" / checkpoint_name(HALF, 1)
        far = farthest(made, changed(bench, f"{name} again", with_optimizer(name), stopped))
        band = DISTURBED[bench.tiny]
        bench.expect(far <= band, f"losses of {name} after a resume differ by {far:.2g}, at most {band:.0e}")
        if "adamw" in name:
            apart = farthest(whole, made)
            bench.note(**{f"{name} from adamw_torch": apart})
            bench.expect(
                apart <= EIGHT_BITS, f"losses of {name} are {apart:.2g} from AdamW's, at most {EIGHT_BITS:.0e}"
            )
        if not bench.tiny and name == "adamw_bnb_8bit":
            bench.expect(made.peak_bytes() < whole.peak_bytes(), "8-bit states save no memory")


def other_rules(bench: Bench) -> None:
    """Train with Muon and fused AdamW: losses fall, and fused AdamW's are those of AdamW."""
    whole, fused = (
        changed(bench, "adamw_torch", as_planned),
        changed(bench, "fused", with_optimizer("adamw_torch_fused")),
    )
    far = farthest(whole, fused)
    bench.expect(far <= KERNELS, f"losses of fused AdamW differ by {far:.2g}, at most {KERNELS:.0e}")
    muon = changed(bench, "muon", with_optimizer("muon")).losses()
    bench.expect(muon[STEPS] < muon[1], f"Muon's loss does not fall: {muon}")


def liger(bench: Bench) -> None:
    """Compare Liger's norms, rotary positions, MLP and fused loss with the model's own."""
    if bench.tiny:
        bench.note(liger="Triton needs a GPU")
        return

    def change(plan: Plan) -> Plan:
        kernels = kernels_of({"use_liger_kernel": True}, True)
        training = {**plan.engine.training, **kernels.training}
        return revised(plan, training=training, loss_head=kernels.loss_head)

    plain, fused = changed(bench, "plain", as_planned), changed(bench, "liger", change)
    far = farthest(plain, fused)
    bench.note(largest_difference=far)
    bench.expect(far <= KERNELS, f"losses with Liger differ by {far:.2g}, at most {KERNELS:.0e}")


def compiled(bench: Bench) -> None:
    """Compare compiled layers with the model's own; inductor writes Triton on a GPU, which needs a C compiler."""
    backend = "eager" if bench.tiny else "inductor"
    plain = changed(bench, "plain", as_planned)
    made = changed(bench, "compiled", lambda plan: revised(plan, compilation=PlannedCompilation(backend=backend)))
    far = farthest(plain, made)
    bench.note(backend=backend, largest_difference=far)
    bench.expect(far <= KERNELS, f"losses of compiled layers differ by {far:.2g}, at most {KERNELS:.0e}")


CASES = (
    Case(
        "optimizers/small states",
        "8-bit and paged AdamW stay within 5e-2 of AdamW, take less memory, and resume as the run was",
        small_states,
        240,
        alone=False,
    ),
    Case("optimizers/liger", "losses with Liger's kernels are within 2e-2 of the model's own", liger, 90, alone=False),
    Case(
        "optimizers/compiled layers",
        "losses of compiled layers are within 2e-2 of the model's own",
        compiled,
        180,
        alone=False,
    ),
    Case(
        "optimizers/other rules",
        "fused AdamW's losses are within 2e-2 of AdamW's, and Muon's loss falls",
        other_rules,
        120,
        alone=False,
    ),
)
