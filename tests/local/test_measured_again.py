"""A judgement or a suite that failed is tried again only in other circumstances, and then of the weights in storage."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import File
from finetune_api.messages import ExportForm, Manifest, MethodType
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import parse_job
from finetune_api.v1alpha1.suite_spec import SuiteSpec
from finetune_trainer.export import form_maker
from finetune_trainer.export.evidence.evidence_paths import EVIDENCE
from finetune_trainer.export.evidence.verification import verify_artifact
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.judge.judge_process import JudgeInputs
from finetune_trainer.judge.judge_question import JudgeSettings
from finetune_trainer.judge.judgement_records import NOT_JUDGED, JudgedMeasure, Judgement
from finetune_trainer.process.asked_program import ProgramError
from finetune_trainer.run.asked_export import is_made_as_asked, is_measured_as_asked
from finetune_trainer.storage import read_manifest
from finetune_trainer.suites.suite_records import SUITES, SuiteAnswer, SuiteQuestion, SuiteSettings, SuiteValue
from tests.local.exported_run import RUN, Run
from tests.unit.test_api_parse import job

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

JUDGE = JudgeSettings(rows=17)
SPEC = {"judge": {"rows": 17}, "gates": {"loss": "< 9"}, "forms": ["merged"]}
WRITTEN_AGAIN = (EVIDENCE, "README.md", File.JUDGEMENT, SUITES)


@pytest.fixture
def run(llama: Path, tmp_path: Path) -> Run:
    return Run.with_adapter(llama, tmp_path)


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What happens to each judgement: a reason for a failure, or None for a good one; the last one goes on."""
    outcomes: list[str | None] = ["too little memory"]

    def judge(inputs: JudgeInputs, form: str, artifact: Path, settings: JudgeSettings, report: Any) -> Judgement:
        reason = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        report(f"judged: {form}")
        if reason:
            raise ProgramError(reason)
        measures = (JudgedMeasure(name="loss", tuned=1.0),)
        return Judgement(step=20, generation=1, settings=settings.digest, form=form, measures=measures)

    monkeypatch.setattr(JudgeInputs, "judge", judge)
    return outcomes


def request(export: dict[str, Any] | None = None, **changes: Any) -> ExportRequest:
    spec = parse_job(job(spec__export=SPEC | (export or {}), spec__dataset__eval={"split": 0.1})).spec
    return replace(ExportRequest.of(spec.export, MethodType.LORA), **changes)


def exported(run: Run, asked: ExportRequest) -> StageResult:
    run.reports.clear()
    return run.export(asked)


def complete(run: Run, export: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> bool:
    """Whether `finetune run` would say that the run is complete."""
    spec = parse_job(job(spec__export=SPEC | (export or {}), spec__dataset__eval={"split": 0.1})).spec
    made = is_made_as_asked(spec, run.store, RUN, {})
    return made and is_measured_as_asked(spec, run.store, RUN, environ or {})


def was_judged(run: Run) -> bool:
    return any(line.startswith("judged: ") for line in run.reports)


def was_merged(run: Run) -> bool:
    return any("reads the base model" in line for line in run.reports)


def manifest(run: Run, form: str = "merged") -> Manifest:
    found = read_manifest(run.store, f"{RUN}artifacts/{form}/")
    assert found is not None
    return found


def hashes(one: Manifest) -> dict[str, str]:
    """The files of an artifact that say nothing of judgements."""
    return {entry.path: entry.sha256 for entry in one.files if not entry.path.startswith(WRITTEN_AGAIN)}


def test_a_judgement_that_failed_is_not_tried_again_while_nothing_has_changed(
    run: Run, judging: list[str | None]
) -> None:
    assert not complete(run)
    first = exported(run, request())
    assert first.approval is not None
    assert (was_judged(run), first.approval.judged) == (True, False)
    assert complete(run), "a repeated `finetune run` has nothing to do"
    before = manifest(run)
    again = exported(run, request())
    assert again.note.endswith("existed already")
    assert again.approval == first.approval
    assert again.artifacts == first.artifacts
    assert manifest(run) == before
    assert not was_judged(run)
    assert "judge: not tried again, nothing has changed since it failed: too little memory" in run.reports
    assert not complete(run, {"judge": {"rows": 18}})
    assert not complete(run, {"gates": {"loss": "< 8"}})
    assert not complete(run, {"attempt": 2})
    assert not complete(run, {"resources": {"limits": {"memory": "9Gi"}}})
    exported(run, request({"gates": {"loss": "< 8"}}))
    assert complete(run, {"gates": {"loss": "< 8"}})
    assert not was_judged(run), "other gates ask for no other judgement"


def test_in_other_circumstances_the_weights_in_storage_are_judged(run: Run, judging: list[str | None]) -> None:
    exported(run, request())
    before, raw = manifest(run), run.store.get(f"{RUN}artifacts/merged/{File.MANIFEST}")
    assert was_merged(run)
    exported(run, request({"attempt": 2}))
    assert (was_judged(run), was_merged(run)) == (True, False)
    assert run.store.get(f"{RUN}artifacts/merged/{File.MANIFEST}") == raw, "it says what it said before"
    assert complete(run, {"attempt": 2})
    judging[:] = [None]
    good = exported(run, request({"attempt": 3}))
    assert good.approval is not None
    assert (good.approval.approved, was_merged(run)) == (True, False)
    assert hashes(manifest(run)) == hashes(before)
    assert "## Judged against the base model" in (run.artifact("merged") / "README.md").read_text()
    check(run, "merged")
    assert complete(run)
    assert run.store.head(RUN + NOT_JUDGED) is None
    assert exported(run, request()).note.endswith("existed already")


def check(run: Run, form: str) -> None:
    """Every file and the lineage are what the list of files says, and nothing else is there."""
    folder = Path(f"{run.store.uri}/{RUN}artifacts/{form}".removeprefix("file://"))
    verify_artifact(folder)
    assert not list(run.store.list(f"{RUN}rewritten/"))


def test_another_question_is_asked_of_the_weights_in_storage(run: Run, judging: list[str | None]) -> None:
    judging[:] = [None]
    exported(run, request({"forms": ["adapter", "merged"]}))
    first = hashes(manifest(run))
    exported(run, request({"forms": ["adapter", "merged"], "judge": {"rows": 18}}))
    assert (was_judged(run), was_merged(run)) == (True, False)
    assert hashes(manifest(run)) == first
    for form in ("adapter", "merged"):
        told = json.loads((run.artifact(form) / File.JUDGEMENT).read_text())
        assert told["settings"] == JudgeSettings(rows=18).digest
        check(run, form)


def test_weights_of_other_software_or_with_a_fault_are_made_again(
    run: Run, judging: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(run, request())
    key = f"{RUN}artifacts/merged/model.safetensors"
    good = run.store.get(key)
    run.store.put(key, good[:-1] + bytes([good[-1] ^ 1]))
    judging[:] = [None]
    exported(run, request({"attempt": 2}))
    assert was_merged(run)
    assert any(line.startswith("merged: is made again: ") for line in run.reports)
    assert run.store.get(key) == good
    check(run, "merged")
    monkeypatch.setattr("finetune_trainer.export.stored_artifact.installed_versions", lambda: {"torch": "9"})
    exported(run, request({"judge": {"rows": 18}}))
    assert was_merged(run)


Stop = Callable[..., Any]


@pytest.mark.parametrize("step", ["delete", "upload"])
def test_an_interruption_while_the_judgement_is_added_loses_no_weights(
    run: Run, judging: list[str | None], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    exported(run, request())
    first = hashes(manifest(run))
    judging[:] = [None]

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "upload":
            patch.setattr(form_maker, "upload_tree", stopped)
        else:
            delete = type(run.store).delete

            def once(store: Any, keys: Any) -> None:
                delete(store, keys)
                if any(key.endswith(f"merged/{File.MANIFEST}") and "/artifacts/" in key for key in keys):
                    raise KeyboardInterrupt

            patch.setattr(type(run.store), "delete", once)
        with pytest.raises(KeyboardInterrupt):
            exported(run, request({"attempt": 2}))
    assert read_manifest(run.store, f"{RUN}artifacts/merged/") is None
    exported(run, request({"attempt": 2}))
    assert (was_judged(run), was_merged(run)) == (False, False), "neither the judgement nor the weights are lost"
    assert hashes(manifest(run)) == first
    check(run, "merged")


def test_a_gguf_artifact_gets_another_judgement_without_a_conversion(
    run: Run, judging: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.export.stage.converter", lambda: None)
    converted: list[Path] = []

    def write(model: Path, folder: Path, *_: Any) -> None:
        converted.append(model)
        (folder / "model-f16.gguf").write_bytes(b"GGUF of " + (model / "model.safetensors").read_bytes()[:99])

    monkeypatch.setattr("finetune_trainer.export.gguf.gguf_files.write_gguf", write)
    both = {"forms": ["merged", "gguf"]}
    first = exported(run, request(both))
    assert len(converted) == 1
    judging[:] = [None]
    again = exported(run, request({**both, "attempt": 2}))
    assert (len(converted), was_merged(run)) == (1, False)
    assert [one.step for one in again.artifacts] == [one.step for one in first.artifacts]
    folder = run.artifact("gguf")
    assert "before their conversion to GGUF" in (folder / File.JUDGEMENT).read_text()
    assert "model-f16.gguf" in (folder / "README.md").read_text()
    check(run, "gguf")
    alone = {"forms": ["gguf"], "judge": {"rows": 18}}
    exported(run, request(alone))
    assert (len(converted), was_merged(run)) == (2, True), "the judge reads the weights before the conversion"


# ---------------------------------------------------------------- suites


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "colours.yaml").write_text("task: colours")
    return folder


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The value of each run of a suite; a negative one is a failure."""
    values: list[float] = []

    def ask(question: SuiteQuestion, work: Path, environ: Any) -> SuiteAnswer:
        value = values.pop(0)
        if value < 0:
            raise ProgramError("no network")
        return SuiteAnswer(values=(SuiteValue(name="colours.acc", value=value),))

    monkeypatch.setattr("finetune_trainer.export.suited.ask_suite", ask)
    return values


def test_a_suite_whose_definitions_changed_at_the_same_place_is_run_again(
    run: Run, tasks: Path, answers: list[float]
) -> None:
    suite = {"name": "own", "tasks": ["colours"], "definitions": f"file://{tasks}"}
    spec = parse_job(job(spec__evaluation={"suites": [suite]})).spec
    asked = ExportRequest(
        (ExportForm.ADAPTER,), suites=(SuiteSettings.of(SuiteSpec.model_validate(suite)),),
        measured_with=ExportRequest.of(spec.export, MethodType.LORA).measured_with,
    )  # fmt: skip

    def evaluated() -> float | str:
        [outcome] = exported(run, asked).suites
        return outcome.problem or outcome.values["colours.acc"]

    def done() -> bool:
        return is_made_as_asked(spec, run.store, RUN, {}) and is_measured_as_asked(spec, run.store, RUN, {})

    answers[:] = [0.25]
    assert (evaluated(), done()) == (0.25, True)
    assert (evaluated(), done()) == (0.25, True)
    (tasks / "colours.yaml").write_text("task: colours # another one")
    assert not done()
    answers[:] = [0.5]
    assert (evaluated(), done()) == (0.5, True)
    assert "| own | colours.acc | 0.5 |" in (run.artifact("adapter") / "README.md").read_text()
    check(run, "adapter")
    (tasks / "colours.yaml").write_text("task: with a fault")
    answers[:] = [-1]
    assert (evaluated(), done()) == ("no network", True)
    assert (evaluated(), done()) == ("no network", True)
    assert "suite own: not tried again, nothing has changed since it failed: no network" in run.reports
    (tasks / "colours.yaml").write_text("task: colours")
    assert not done()
    answers[:] = [0.75]
    assert (evaluated(), done()) == (0.75, True)
    for one in tasks.iterdir():
        one.unlink()
    assert (evaluated(), done()) == (0.75, True), "values stay where the definitions cannot be read"
