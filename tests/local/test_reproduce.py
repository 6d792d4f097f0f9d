"""What `finetune reproduce` reads, checks and concludes. The training itself is repeated in test_run.py."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from finetune_api.contract import File, dataset_prefix
from finetune_api.errors import DataError, SpecError
from finetune_api.messages import AdapterFacts, ExportForm, MethodType, Quantization, Task
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.committed import Committed, find_checkpoints
from finetune_trainer.checkpoints.trained_on import TRAINED_ON, TrainedOn
from finetune_trainer.export.evidence.evidence_paths import LINEAGE, PLAN_COPY
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.reproduction.checked_inputs import bring_inputs
from finetune_trainer.reproduction.checked_plan import check_plan
from finetune_trainer.reproduction.new_training import NewTraining
from finetune_trainer.reproduction.recorded_run import read_evidence
from finetune_trainer.reproduction.reproduction_answer import ReproductionAnswer
from finetune_trainer.reproduction.reproduction_steps import (
    Reproduction,
    check_machine,
    differences,
    environment_for,
    identity,
)
from finetune_trainer.run.screen import Screen
from finetune_trainer.storage import FolderStore, upload_tree
from finetune_trainer.worker.this_machine import this_machine
from tests.local.exported_run import Run, lora_classifier
from tests.local.test_evidence import MIRROR, RUN, FilesOnly, make_keys

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def run(tmp_path: Path) -> FilesOnly:
    made = FilesOnly.of(tmp_path)
    machine = this_machine(3).model_copy(update={"device": "cpu"})
    made.store.put(f"{RUN}checkpoints/step-00000020-g1/node-0/{TRAINED_ON}", machine.to_json().encode())
    made.export()
    return made


def reproduce(run: FilesOnly) -> None:
    folder = run.artifact
    Reproduction(folder, read_evidence(folder), run.work, Screen(Console()), band=0.05).run()


def data_changed(run: FilesOnly) -> None:
    run.store.put(f"{dataset_prefix(run.plan.dataset.sha256)}train-00000.arrow", b"other rows")


def data_missing(run: FilesOnly) -> None:
    run.store.delete([f"{dataset_prefix(run.plan.dataset.sha256)}{File.MANIFEST}"])


def model_replaced(run: FilesOnly) -> None:
    manifest = json.loads(run.store.get(MIRROR + File.MANIFEST))
    manifest["files"][0]["sha256"] = "0" * 64
    run.store.put(MIRROR + File.MANIFEST, json.dumps(manifest).encode())


CHANGES: list[tuple[Callable[[FilesOnly], None], str, str]] = [
    (data_changed, "prepared data set", "train-00000.arrow"),
    (data_missing, "prepared data set", "there is no datasets/"),
    (model_replaced, "base model", "and the lineage says"),
]


@pytest.mark.parametrize(("change", "field", "words"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_an_input_that_was_changed_is_named_before_any_training(
    run: FilesOnly, change: Callable[[FilesOnly], None], field: str, words: str
) -> None:
    change(run)
    with pytest.raises(DataError) as caught:
        reproduce(run)
    [problem] = caught.value.problems
    assert (problem.code, problem.field) == ("InputChanged", field)
    assert words in problem.message


def test_a_storage_that_was_a_folder_of_the_machine_is_where_the_artifact_lies_or_is_asked_for(
    run: FilesOnly, tmp_path: Path
) -> None:
    recorded = read_evidence(run.artifact)
    assert recorded.storage_around(run.artifact) == run.store.uri
    copied = shutil.copytree(run.artifact, tmp_path / "copied")
    with pytest.raises(SpecError, match="--storage file:///FOLDER"):
        recorded.storage_around(copied)


def test_equal_files_that_were_stored_anew_are_the_same_input(run: FilesOnly, tmp_path: Path) -> None:
    for prefix in (MIRROR, dataset_prefix(run.plan.dataset.sha256)):
        manifest = json.loads(run.store.get(prefix + File.MANIFEST))
        run.store.put(prefix + File.MANIFEST, json.dumps({**manifest, "created": "later"}).encode())
    own, lines = FolderStore(tmp_path / "own"), list[str]()
    bring_inputs(read_evidence(run.artifact), run.plan, run.store, own, lines.append)
    assert own.get(f"{MIRROR}config.json") == b"{}"
    assert lines == [
        "base model: 2 files, 24 bytes, as the lineage says",
        "prepared data set: 1 file, 4 bytes, as the lineage says",
    ]


def test_the_plan_is_in_the_evidence_and_must_be_the_one_of_the_lineage(run: FilesOnly) -> None:
    assert run.plan.prediction.flops_per_token, "a name that ends like a secret's"
    plan = run.plan.model_copy(update={"model": run.plan.model.model_copy(update={"source": "owner/tiny"})})
    run.store.put(RUN + File.PLAN, plan.to_json().encode())
    replace(run, plan=plan).export(make_keys(run.work)[0])  # a new key makes the artifact again
    recorded = read_evidence(run.artifact)
    run.store.delete([RUN + File.PLAN])
    assert recorded.plan(run.store) == plan
    assert recorded.step == 20
    with pytest.raises(DataError, match="is not the plan of the artifact, or is missing"):
        replace(recorded, plan_copy=b"{}").plan(run.store)


def test_what_may_hold_a_credential_is_not_in_the_evidence(tmp_path: Path) -> None:
    made = FilesOnly.of(tmp_path)
    source = made.plan.model.model_copy(update={"source": "https://me:secret@host/model"})
    made.store.put(RUN + File.PLAN, made.plan.model_copy(update={"model": source}).to_json().encode())
    made.export()
    assert "secret" not in (made.artifact / PLAN_COPY).read_text()
    assert read_evidence(made.artifact).plan(made.store).model.source == source.source, "the run has the plan"


def test_no_folder_of_the_machine_is_in_the_evidence_and_the_plan_is_then_that_of_the_run(tmp_path: Path) -> None:
    made = FilesOnly.of(tmp_path)
    sources = {"source": "file:///home/somebody/secret-project/tiny"}
    adapter = AdapterFacts(source=f"{made.store.uri}/adapters/one", prefix="adapters/one/", commit="a" * 64)
    plan = made.plan.model_copy(update={"model": made.plan.model.model_copy(update=sources), "adapter": adapter})
    made.store.put(RUN + File.PLAN, plan.to_json().encode())
    replace(made, plan=plan).export()
    for path in (made.artifact / "evidence").iterdir():
        assert "somebody" not in path.read_text(), path.name
        assert str(tmp_path) not in path.read_text(), path.name
    assert json.loads((made.artifact / PLAN_COPY).read_text())["model"]["source"] == "file:///.../tiny"
    recorded = read_evidence(made.artifact)
    assert recorded.plan(made.store) == plan
    made.store.delete([RUN + File.PLAN])
    with pytest.raises(DataError, match="is not the plan of the artifact, or is missing"):
        recorded.plan(made.store)


def test_an_artifact_does_not_choose_the_server_that_gets_the_keys() -> None:
    storage = {"endpoint": "https://other.example", "region": "eu-west-1"}
    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
    for environ in (keys, {}, {**keys, "AWS_ENDPOINT_URL_S3": ""}):
        with pytest.raises(
            SpecError, match=r"is on the server 'https://other\.example'.* AWS_ENDPOINT_URL_S3 is not set"
        ):
            environment_for("s3://bucket/a", storage, environ)
    own = {**keys, "AWS_ENDPOINT_URL_S3": "https://own.example"}
    assert environment_for("s3://bucket/a", storage, own) == {**own, "AWS_REGION": "eu-west-1"}
    assert environment_for("s3://bucket/a", {}, keys) == keys
    assert "AWS_ENDPOINT_URL_S3" not in environment_for("file:///folder", storage, keys)


FOREIGN: list[tuple[dict[str, Any], str]] = [
    ({"deepspeed": {"flops_profiler": {"enabled": True, "output_file": "x"}}}, "deepspeed.flops_profiler.output_file"),
    ({"deepspeed": {"csv_monitor": {"enabled": True}}}, "deepspeed.csv_monitor.enabled"),
    ({"deepspeed": {"tensorboard": {"output_path": "/x"}}}, "deepspeed.tensorboard.output_path"),
    ({"deepspeed": {"zero_optimization": {"offload_param": {"device": "nvme"}}}}, "offload_param.device"),
    ({"deepspeed": {"zero_optimization": {"offload_param": {"nvme_path": "x"}}}}, "offload_param.nvme_path"),
    ({"deepspeed": {"other": [{"a": "../x"}]}}, "deepspeed.other.0.a"),
    ({"training": {"push_to_hub": True}}, "engine.training.push_to_hub"),
    ({"training": {"logging_dir": "/x"}}, "engine.training.logging_dir"),
    ({"optimizer": {"name": "sgd", "arguments": {"dump": "/x"}}}, "engine.optimizer.arguments.dump"),
]


@pytest.mark.parametrize(("engine", "path"), FOREIGN, ids=range(len(FOREIGN)))
def test_a_plan_that_names_files_is_refused(run: FilesOnly, engine: dict[str, Any], path: str) -> None:
    check_plan(run.plan.model_copy(update={"lora": {"r": 4, "task_type": "SEQ_CLS"}}))
    plan = Plan.model_validate({**run.plan.model_dump(), "engine": engine})
    with pytest.raises(SpecError) as caught:
        check_plan(plan)
    assert {one.code for one in caught.value.problems} == {"PlanRefused"}
    assert any(one.field.endswith(path) for one in caught.value.problems), caught.value.problems


def test_a_foreign_plan_is_refused_before_an_input_is_copied(run: FilesOnly, tmp_path: Path) -> None:
    raw = run.plan.model_copy(update={"lora": {"r": 4, "eva_config": {}}}).to_json().encode()
    recorded = replace(
        read_evidence(run.artifact), plan_copy=raw, plan_digest=hashlib.sha256(raw).hexdigest(), inputs={}
    )
    with pytest.raises(SpecError, match=r"plan\.lora\.eva_config: is not a setting that a job can have"):
        Reproduction(run.artifact, recorded, tmp_path / "again", Screen(Console()), band=0.05).run()
    assert not (tmp_path / "again").exists()


def test_the_evidence_of_an_older_version_is_told_apart(run: FilesOnly, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(run.artifact, older)
    lineage = json.loads((older / LINEAGE).read_text())
    parameters = lineage["predicate"]["buildDefinition"]["internalParameters"]
    machine = TrainedOn.model_validate(parameters.pop("trainedOn"))
    assert (machine.threads, machine.packages["torch"]) == (3, torch.__version__.partition("+")[0])
    (older / LINEAGE).write_text(json.dumps(lineage))
    assert differences(read_evidence(older), this_machine(0)) == [
        "machine and packages: unknown then, because an older version made the checkpoint"
    ]
    del parameters["step"]
    (older / LINEAGE).write_text(json.dumps(lineage))
    with pytest.raises(SpecError, match="does not say how the artifact was trained") as caught:
        read_evidence(older)
    assert caught.value.problems[0].code == "EvidenceUnusable"


def test_a_lineage_that_leads_out_of_its_storage_is_refused(run: FilesOnly) -> None:
    path = run.artifact / LINEAGE
    good = path.read_text()
    path.write_text(good.replace("/jobs/default/job/uid-1/", "/jobs/default/../uid-1/"))
    with pytest.raises(SpecError, match="is not a valid object key"):
        read_evidence(run.artifact)
    path.write_text(good)
    model = run.plan.model.model_copy(update={"prefix": "../../models/"})
    raw = run.plan.model_copy(update={"model": model}).to_json().encode()
    forged = replace(read_evidence(run.artifact), plan_copy=raw, plan_digest=hashlib.sha256(raw).hexdigest())
    with pytest.raises(SpecError, match="is not a valid object key"):
        forged.plan(run.store)


@pytest.mark.parametrize("form", [ExportForm.ADAPTER, ExportForm.MERGED])
def test_the_same_form_is_made_of_the_new_checkpoint_and_compared(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: ExportForm
) -> None:
    """The checkpoint of the new training is that of the run, or differs in one weight; a better one is not taken."""
    made = Run.of(bert, tmp_path, Task.CLASSIFICATION, MethodType.LORA)
    upload_rows(made, tmp_path / "rows")
    made.commit(20, tuned(bert), eval_loss=0.5)
    made.export(ExportRequest((form,), "float32"))
    folder = made.store.path(f"{RUN}artifacts/{form.folder(MethodType.LORA)}")

    def answer(work: str, seed: int) -> ReproductionAnswer:
        def train(self: NewTraining, screen: Screen) -> Committed | None:
            again = Run(self.store, made.plan, bert, tmp_path / work)
            again.commit(10, tuned(bert, 5), eval_loss=0.1)
            again.commit(20, tuned(bert, seed), eval_loss=0.5)
            for entry in list(self.store.list(f"{RUN}checkpoints/")):
                self.store.copy(entry.key, self.prefix + entry.key.removeprefix(RUN))
            return next(
                one for one in find_checkpoints(self.store, self.prefix).committed.values() if one.id.step == 20
            )

        monkeypatch.setattr(NewTraining, "train", train)
        recorded = read_evidence(folder)
        return Reproduction(folder, recorded, tmp_path / work, Screen(Console()), band=0.05).run()

    assert answer("same", 0).sentence.startswith("reproduced bit for bit: ")
    other = answer("other", 1)
    assert not other.reproduced
    assert any("numbers differ" in line for line in other.details)


def tuned(base: Path, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(0)  # peft draws lora_A, transformers the head
    return lora_classifier(base, seed)


def upload_rows(made: Run, folder: Path) -> None:
    folder.mkdir()
    (folder / "train.arrow").write_bytes(b"rows")
    upload_tree(made.store, folder, dataset_prefix(made.plan.dataset.sha256), "dataset")


def test_what_bits_depend_on_is_compared() -> None:
    then = TrainedOn(processor="A", capability="AVX2", threads=2, packages={"torch": "2.9", "peft": "1"})
    here = then.model_copy(update={"threads": 4, "packages": {"torch": "2.13"}})
    assert then.differences(then) == []
    assert then.differences(here) == [
        "threads of a rank: 2 then, 4 here",
        "peft: 1 then, not installed here",
        "torch: 2.9 then, 2.13 here",
    ]
    gpu = then.model_copy(update={"device": "H100"})
    assert gpu.differences(gpu.model_copy(update={"processor": "B"})) == []


def test_the_code_is_that_of_the_training_and_a_restart_is_named(run: FilesOnly) -> None:
    """An export by a newer version changes no bit of a training; one by an older hides no difference."""
    recorded, here = read_evidence(run.artifact), this_machine(3).model_copy(update={"device": "cpu"})
    assert differences(recorded, here) == []
    path = run.artifact / LINEAGE
    lineage = json.loads(path.read_text())
    definition = lineage["predicate"]["buildDefinition"]
    [code] = [one for one in definition["resolvedDependencies"] if one["name"] == "finetune-operator"]
    code["digest"]["sha256"] = "0" * 64
    path.write_text(json.dumps(lineage))
    assert differences(read_evidence(run.artifact), here) == [], "another version exported it"
    definition["internalParameters"]["generation"] = 2
    path.write_text(json.dumps(lineage))
    [restarted] = differences(read_evidence(run.artifact), here)
    assert restarted.startswith("machine before a restart: unknown")
    newer = here.model_copy(update={"source_files": "1" * 64})
    assert differences(recorded, newer) == ["source files of finetune-operator: others then than here"]
    assert identity(recorded, newer) != identity(recorded, here), "a training of other code does not go on"
    del definition["internalParameters"]["trainedOn"]["source_files"]
    path.write_text(json.dumps(lineage))
    assert "source files of finetune-operator: others then than here" in differences(
        read_evidence(run.artifact), here
    ), "an older version trained: the export's code is all that is known"


def test_a_machine_with_too_few_gpus_is_refused(run: FilesOnly) -> None:
    ranks = run.plan.world_size
    check_machine(TrainedOn(), run.plan, 0)
    check_machine(TrainedOn(device="H100"), run.plan, ranks)
    with pytest.raises(SpecError, match=f"was trained on {ranks} x H100, and this machine has 1 GPUs"):
        check_machine(TrainedOn(device="H100"), run.plan, 1)


def test_an_artifact_is_made_again_with_the_settings_of_its_manifest() -> None:
    made = {"dtype": "float16", "quantizations": ["q8_0"], "judged": "x"}
    request = ExportRequest.recorded(ExportForm.GGUF, made)
    assert (request.dtype, request.quantizations, request.judge) == ("float16", (Quantization.Q8_0,), None)
