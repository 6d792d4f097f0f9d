"""A user's own DeepSpeed configuration: what is wrong is refused in prepare, with its path; what is right is read."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_trainer.prepare import deepspeed_config
from finetune_trainer.prepare.deepspeed_config import check_config
from finetune_trainer.prepare.plan.given_config import given_values, sharding
from tests.unit.test_planner import job as job_with

ADAM = {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **more}}


@dataclass(frozen=True)
class Refused:
    what: str
    config: dict[str, Any]
    path: str
    says: str
    training: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __str__(self) -> str:
        return self.what


REFUSED = [
    Refused("a micro-batch that training contradicts", {"train_micro_batch_size_per_gpu": 4},
            "train_micro_batch_size_per_gpu", "per_device_train_batch_size is 2", {"per_device_train_batch_size": 2}),
    Refused("sizes whose product is another", {"train_batch_size": 12, "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 1}, "train_batch_size", "not the product of 2 ranks x micro-batches of 4"),
    Refused("a global batch that the ranks cannot share", {"train_batch_size": 7}, "train_batch_size",
            "not a multiple of 2 ranks"),
    Refused("half a row", {"train_batch_size": 0.5}, "train_batch_size", "not a number of rows"),
    Refused("another learning rate", {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}},
            "optimizer.params.lr", "spec.training.learning_rate is 0.001", {"learning_rate": 1e-3}),
    Refused("a learning rate that nobody tells DeepSpeed", {"optimizer": {"type": "AdamW", "params": {
            "torch_adam": True}}}, "optimizer.params.lr", "the plan's learning rate would have no effect"),
    Refused("clipping that nobody tells DeepSpeed", {}, "gradient_clipping", "max_grad_norm 0.5 would have no effect",
            {"max_grad_norm": 0.5}),
    Refused("two schedules", {"optimizer": ADAM, "scheduler": {"type": "WarmupCosineLR",
            "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"}}}, "scheduler", "there is one schedule",
            {"lr_scheduler_type": "linear"}),
    Refused("a schedule with a rate of its own", {"optimizer": ADAM, "scheduler": {"type": "WarmupLR",
            "params": {"warmup_num_steps": "auto"}}}, "scheduler.params.warmup_max_lr", "its own default"),
    Refused("two rates", {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}, "scheduler": {
            "type": "WarmupLR", "params": {"warmup_num_steps": 2, "warmup_max_lr": 1e-3}}},
            "scheduler.params.warmup_max_lr", "optimizer.params.lr is 0.0001"),
    Refused("both precisions", {"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16.enabled", "so is bf16",
            {}, "gpu"),
    Refused("float16 on CPU", {"fp16": {"enabled": True}}, "fp16.enabled", "no float16 on CPU"),
    Refused("a stage that does not exist", zero(4), "zero_optimization.stage", "is 4"),
    Refused("weights of shards only", zero(3), "zero_optimization.stage3_gather_16bit_weights_on_model_save",
            "which cannot be exported"),
    Refused("offloaded weights without ZeRO-3", zero(2, offload_param={"device": "cpu"}),
            "zero_optimization.offload_param.device", "needs stage 3 or more"),
    Refused("disks", zero(2, offload_optimizer={"device": "nvme"}), "zero_optimization.offload_optimizer.device",
            "not supported yet"),
    Refused("an offloaded optimizer of torch's", {**zero(2, offload_optimizer={"device": "cpu"}), "optimizer": ADAM},
            "zero_force_ds_cpu_optimizer", "is not false"),
    Refused("an old name", zero(2, cpu_offload=True), "zero_optimization.cpu_offload", "old name of offload_optimizer"),
    Refused("a name that DeepSpeed's schema lacks", zero(2, reduce_bucket_sizee=1),
            "zero_optimization.reduce_bucket_sizee", "not permitted"),
    Refused("a block that DeepSpeed would ignore", {"zero_optimisation": {"stage": 2}}, "zero_optimisation",
            "not a name of DeepSpeed's"),
    Refused("an optimizer without type", {"optimizer": {"params": {"lr": "auto"}}}, "optimizer.type", "is missing"),
    Refused("an optimizer that must be compiled", {"optimizer": {"type": "Lamb", "params": {"lr": "auto"}}},
            "optimizer.type", "this image has no c++"),
    Refused("batches that grow", {"elasticity": {"enabled": True}}, "elasticity.enabled",
            "every step has the same rows"),
    Refused("DeepSpeed's own recomputation", {"activation_checkpointing": {"cpu_checkpointing": True}},
            "activation_checkpointing.cpu_checkpointing", "recompute without DeepSpeed"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_cannot_work_is_refused_with_its_path(case: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_config.shutil, "which", lambda name: None)
    job = job_with(deepspeed={"config": case.config}, training=case.training)
    with pytest.raises(SpecError) as caught:
        check_config(job, case.device, world=2)  # type: ignore[arg-type]
    assert [problem.field for problem in caught.value.problems] == [f"spec.deepspeed.config.{case.path}"]
    assert case.says in caught.value.problems[0].message
    assert caught.value.problems[0].cure


FINE: dict[str, dict[str, Any]] = {
    "nothing at all": {},
    "transformers' own example": {
        "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto",
                                                  "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
                                                     "warmup_num_steps": "auto"}},
        **zero(3, overlap_comm=True, contiguous_gradients=True, sub_group_size=1e9, reduce_bucket_size="auto",
               stage3_prefetch_bucket_size="auto", stage3_param_persistence_threshold="auto",
               stage3_max_live_parameters=1e9, stage3_gather_16bit_weights_on_model_save=True),
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto", "steps_per_print": 2000, "wall_clock_breakdown": False,
    },
    "blocks that ask for nothing": {
        "activation_checkpointing": {"partition_activations": False, "cpu_checkpointing": False},
        "elasticity": {"enabled": False}, "tensorboard": {"enabled": False},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_what_works_is_not_refused(name: str) -> None:
    check_config(job_with(deepspeed={"config": FINE[name]}), "cpu", world=2)


def test_the_plan_reads_what_a_configuration_settles() -> None:
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.5,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.8, 0.95], "eps": "auto", "torch_adam": True}},
        "bf16": {"enabled": True},
        **zero(1, offload_optimizer={"device": "cpu"}),
    }
    job = job_with(deepspeed={"config": config}, training={"max_steps": 7})
    assert given_values(job) == {
        "max_steps": 7,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.5,
        "learning_rate": 3e-4,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "bf16": True,
    }
    assert (sharding(job).stage, sharding(job).offload_optimizer, sharding(job).offload_parameters) == (1, True, False)
