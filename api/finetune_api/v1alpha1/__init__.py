"""The API finetune.dev/v1alpha1: FineTuneJob, spec and status. Read a job with `parse_job`."""

from finetune_api.v1alpha1.input_specs import (
    DatasetSpec,
    EvalSplit,
    MixSource,
    ModelSpec,
    StorageSpec,
    VolumeClaimRef,
)
from finetune_api.v1alpha1.job import FineTuneJob, Metadata
from finetune_api.v1alpha1.parse import parse_job, reread_job
from finetune_api.v1alpha1.pod_resources import Resources
from finetune_api.v1alpha1.pod_template import PodTemplate
from finetune_api.v1alpha1.run_specs import (
    BudgetSpec,
    CheckpointSpec,
    DeepSpeedSpec,
    ExportSpec,
    MethodSpec,
    RecoverySpec,
    StageSpec,
)
from finetune_api.v1alpha1.spec import FineTuneJobSpec
from finetune_api.v1alpha1.spec_base import MAX_NAME_LENGTH
from finetune_api.v1alpha1.status import Condition, ConditionType, FineTuneJobStatus, Phase
from finetune_api.v1alpha1.supported import unsupported
from finetune_api.v1alpha1.training import LoraSpec, TrainingSpec

__all__ = [
    "MAX_NAME_LENGTH",
    "BudgetSpec",
    "CheckpointSpec",
    "Condition",
    "ConditionType",
    "DatasetSpec",
    "DeepSpeedSpec",
    "EvalSplit",
    "ExportSpec",
    "FineTuneJob",
    "FineTuneJobSpec",
    "FineTuneJobStatus",
    "LoraSpec",
    "Metadata",
    "MethodSpec",
    "MixSource",
    "ModelSpec",
    "Phase",
    "PodTemplate",
    "RecoverySpec",
    "Resources",
    "StageSpec",
    "StorageSpec",
    "TrainingSpec",
    "VolumeClaimRef",
    "parse_job",
    "reread_job",
    "unsupported",
]
