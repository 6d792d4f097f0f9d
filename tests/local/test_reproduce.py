"""What `finetune reproduce` reads, checks and concludes. The training itself is repeated in test_run.py."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

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
from finetune_trainer.reproduction.compared_weights import ComparedWeights, DifferentTensor, compare_weights
from finetune_trainer.reproduction.new_training import NewTraining
from finetune_trainer.reproduction.recorded_run import read_evidence
from finetune_trainer.reproduction.reproduction_answer import ReproductionAnswer, reproduction_of
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

LOST = ({"eval_loss": 0.5}, {"eval_loss": 0.5})


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


def saved(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    save_file({name.replace("__", "."): value.clone() for name, value in tensors.items()}, folder / "x.safetensors")
    return folder


def test_every_tensor_is_compared_by_its_bits(tmp_path: Path) -> None:
    same, moved = torch.ones(3), torch.tensor([1.0, 1.0, 2.0])
    old = saved(tmp_path / "old", a=same, b=moved, c=same, zero=torch.tensor([0.0]))
    new = saved(tmp_path / "new", a=same, b=same, c=same, zero=torch.tensor([-0.0]))
    base = saved(tmp_path / "base", a=same * 0, b=same * 0, c=same * 0)
    found = compare_weights(old, new, base)
    assert [one.name for one in found.different] == ["zero", "b"], "the largest relative difference first"
    assert (found.tensors, found.different[1].count, found.different[1].largest) == (4, 1, 1.0)
    assert found.distance == pytest.approx(1 / math.sqrt(3 + 3 + 3))
    assert compare_weights(old, old) == ComparedWeights(4)


def test_the_distance_goes_by_what_training_has_changed(tmp_path: Path) -> None:
    """A whole model hardly moves from its base, and lora_A begins at large random values."""
    base = saved(tmp_path / "base", w=torch.full((4,), 100.0))
    old = saved(tmp_path / "old", w=torch.full((4,), 101.0))
    new = saved(tmp_path / "new", w=torch.full((4,), 102.0))
    assert compare_weights(old, new, base).distance == pytest.approx(0.5)
    adapter = {"base_model__model__w": torch.full((4,), 101.0), "x__lora_A__weight": torch.full((4,), 50.0)}
    other = {**adapter, "x__lora_A__weight": torch.full((4,), 51.0)}
    found = compare_weights(saved(tmp_path / "one", **adapter), saved(tmp_path / "two", **other), base)
    assert found.distance == pytest.approx(1.0)


def moved(*, away: float) -> dict[str, torch.Tensor]:
    return {"transformer__h__w": torch.full((4,), away), "score__weight": torch.full((4,), 50.0)}


def test_a_tensor_whose_beginning_is_unknown_does_not_make_differences_small(tmp_path: Path) -> None:
    """GPT-2's files lack `transformer.`, an embedding has rows for new tokens, a head is new."""
    base = saved(tmp_path / "base", h__w=torch.full((4,), 100.0), other__w=torch.ones(4))
    old, new = (saved(tmp_path / name, **moved(away=away)) for name, away in (("old", 102.0), ("new", 101.0)))
    assert compare_weights(old, new, base).distance == pytest.approx(1.0)
    bare = saved(tmp_path / "bare", unlike=torch.ones(4))
    found = compare_weights(old, new, bare)
    assert math.isinf(found.distance)
    assert not reproduction_of(found, OTHER, LOST).reproduced
    rows = torch.full((3, 2), 10.0)
    base = saved(tmp_path / "rows", e=rows)
    old = saved(tmp_path / "old-rows", e=torch.cat([rows + 2, torch.full((1, 2), 1000.0)]))
    new = saved(tmp_path / "new-rows", e=torch.cat([rows + 1, torch.full((1, 2), 1000.0)]))
    assert compare_weights(old, new, base).distance == pytest.approx(1.0)


def test_an_adapter_that_goes_on_is_measured_from_where_it_began(tmp_path: Path) -> None:
    def lora(name: str, value: float, start: object = True) -> Path:
        made = saved(tmp_path / name, x__lora_B__weight=torch.full((4,), value))
        (made / "adapter_config.json").write_text(json.dumps({"init_lora_weights": start}))
        return made

    start, old, new = lora("start", 100.0), lora("old", 102.0), lora("new", 101.0)
    assert compare_weights(old, new, None, "", start).distance == pytest.approx(1.0)
    assert compare_weights(old, new).distance == pytest.approx(1 / 101)
    merged = [saved(tmp_path / f"merged-{value}", w=torch.full((4,), float(value))) for value in (7, 8, 9)]
    assert math.isinf(compare_weights(*merged, "", start).distance), "the base is not where this training began"
    pissa = [lora(f"pissa-{value}", value, "pissa") for value in (102.0, 101.0)]
    assert math.isinf(compare_weights(*pissa).distance)


UNLIKE = [
    ({"a": torch.ones(2), "b": torch.ones(1)}, "b: the artifact has no such tensor"),
    ({}, "a: the new training has no such tensor"),
    ({"a": torch.ones(3)}, "a: the artifact has float32 [2], the new training float32 [3]"),
    ({"a": torch.ones(2, dtype=torch.bfloat16)}, "the artifact has float32 [2], the new training bfloat16 [2]"),
    ({"a": torch.tensor([math.nan, 1.0])}, "a: it has a value that is NaN or infinite"),
]


@pytest.mark.parametrize(("tensors", "sentence"), UNLIKE, ids=range(len(UNLIKE)))
def test_tensors_that_cannot_be_compared_are_told(
    tmp_path: Path, tensors: dict[str, torch.Tensor], sentence: str
) -> None:
    found = compare_weights(saved(tmp_path / "old", a=torch.ones(2)), saved(tmp_path / "new", **tensors))
    assert sentence in found.different[0].sentence
    assert math.isinf(found.distance)
    assert not reproduction_of(found, ["a version"], LOST).reproduced


def test_gguf_files_are_compared_as_a_whole(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("old", "new")]
    for folder in folders:
        folder.mkdir()
        (folder / "model-f16.gguf").write_bytes(b"weights")
    assert compare_weights(*folders).different == ()
    (folders[1] / "model-f16.gguf").write_bytes(b"others")
    [one] = compare_weights(*folders).different
    assert one.sentence == "model-f16.gguf: its bytes differ; reproduce the form merged to see how far"


def second_file(folder: Path) -> None:
    """Transformers loads model.safetensors; the file that sorts after it has the right weights."""
    (folder / "x.safetensors").rename(folder / "z.safetensors")
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    shutil.copytree(folder, folder.parent / "new", dirs_exist_ok=True)
    save_file({"a": torch.ones(2)}, folder.parent / "new/model.safetensors")
    (folder.parent / "new/x.safetensors").unlink()


def another_format(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def weights_beside_gguf(folder: Path) -> None:
    for each in (folder, folder.parent / "new"):
        (each / "model-f16.gguf").write_bytes(b"converted")
    (folder.parent / "new/x.safetensors").unlink()


def other_scale(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"lora_alpha": 64, "target_modules": ["v", "q"]}')


def left_out_scale(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"target_modules": ["q", "v"]}')


def other_base(folder: Path) -> None:
    other = {**ADAPTER_CONFIG, "base_model_name_or_path": "/other/models/tiny/def"}
    (folder / "adapter_config.json").write_text(json.dumps(other))


def other_shape(folder: Path) -> None:
    (folder / "config.json").write_text('{"num_hidden_layers": 1}')


def other_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


ADAPTER_CONFIG = {"lora_alpha": 16, "target_modules": ["q", "v"], "base_model_name_or_path": "/old/models/tiny/abc"}
FORGERIES: list[tuple[Callable[[Path], None], str]] = [
    (second_file, "a: the artifact has it in several files"),
    (another_format, "pytorch_model.bin: the new training has no such file"),
    (weights_beside_gguf, "x.safetensors: the new training has no such file"),
    (other_scale, "adapter_config.json: the artifact has lora_alpha 64, the new training 16"),
    (left_out_scale, "adapter_config.json: the artifact has lora_alpha 8, the new training 16"),
    (other_base, 'the artifact has base_model_name_or_path "/other/models/tiny/def"'),
    (other_shape, "config.json: the artifact has num_hidden_layers 1, the new training 2"),
    (other_index, "model.safetensors.index.json: the artifact has weight_map {}"),
]


@pytest.mark.parametrize(("forge", "sentence"), FORGERIES, ids=lambda value: getattr(value, "__name__", ""))
def test_equal_tensors_that_are_loaded_otherwise_are_no_reproduction(
    tmp_path: Path, forge: Callable[[Path], None], sentence: str
) -> None:
    old, new = (saved(tmp_path / name, a=torch.ones(2)) for name in ("old", "new"))
    for folder in (old, new):
        config = {**ADAPTER_CONFIG, "base_model_name_or_path": f"/{folder.name}/models/tiny/abc", "peft_version": "1"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text('{"num_hidden_layers": 2}')
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
    (new / "adapter_config.json").write_text(
        json.dumps({**ADAPTER_CONFIG, "target_modules": ["v", "q"], "lora_bias": False})
    )
    assert compare_weights(old, new, mirror="models/tiny/abc/") == ComparedWeights(1)
    forge(old)
    found = compare_weights(old, new, mirror="models/tiny/abc/")
    assert any(sentence in one.sentence for one in found.different), [one.sentence for one in found.different]
    assert not reproduction_of(found, ["a version"], LOST).reproduced


NEAR = ComparedWeights(2, (DifferentTensor("a", "", 1, 4, 0.1, 0.1, 10.0),), 0.01)
OTHER = ["torch: 2.12 then, 2.13 here"]
VERDICTS = [
    (ComparedWeights(2), [], LOST, True, "reproduced bit for bit: 2 tensors"),
    (ComparedWeights(2), OTHER, LOST, True, "reproduced bit for bit: 2 tensors"),
    (NEAR, [], LOST, False, "on this CPU with these packages no bit may differ"),
    (NEAR, OTHER, LOST, True, "reproduced within the band: 1 of 2 tensors differ, 0.01 of what training changed"),
    (replace(NEAR, distance=0.06), OTHER, LOST, False, "not reproduced: 1 of 2 tensors differ, 0.06"),
    (NEAR, OTHER, ({"eval_loss": 0.5}, {"eval_loss": 0.52}), False, "0.02 for eval_loss"),
    (NEAR, OTHER, ({"eval_loss": 0.5}, {}), False, "not reproduced"),
    (NEAR, OTHER, ({}, {"eval_loss": 0.5}), False, "not reproduced"),
    (NEAR, OTHER, ({}, {}), True, "within the band"),
]


@pytest.mark.parametrize(("weights", "apart", "losses", "reproduced", "words"), VERDICTS, ids=range(len(VERDICTS)))
def test_the_verdict(
    weights: ComparedWeights,
    apart: list[str],
    losses: tuple[dict[str, float], dict[str, float]],
    reproduced: bool,
    words: str,
) -> None:
    answer = reproduction_of(weights, apart, losses)
    assert answer.reproduced is reproduced
    assert words in answer.sentence
    assert bool(answer.details) == bool(weights.different)


def test_an_artifact_is_made_again_with_the_settings_of_its_manifest() -> None:
    made = {"dtype": "float16", "quantizations": ["q8_0"], "judged": "x"}
    request = ExportRequest.recorded(ExportForm.GGUF, made)
    assert (request.dtype, request.quantizations, request.judge) == ("float16", (Quantization.Q8_0,), None)
