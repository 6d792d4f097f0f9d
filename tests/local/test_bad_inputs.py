"""Every wrong input of tests/bad_inputs is caught with code, field and line, before anything is trained or stored."""

import multiprocessing
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.errors import FineTuneError, Problem
from finetune_api.v1alpha1.job_files import load_job, located
from finetune_trainer.prepare.prepare_stage import validate
from tests.bad_inputs.cases import GOOD, JOB, Case, jsonl, load_all
from tests.bad_inputs.page import codes, page
from tests.support.hub import Hub, start_hub

CASES = load_all()
DOCS = Path(__file__).parents[2] / "docs/bad-inputs.md"
TRAINS = ("finetune_trainer.worker", "finetune_trainer.agent", "deepspeed")


@pytest.fixture(scope="session")
def hub(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    data = tmp_path_factory.mktemp("hub")
    (data / "train.jsonl").write_text(jsonl(GOOD["llama"]))
    with start_hub({"acme/tiny": llama, "acme/gated": llama}, {"acme/data": data, "acme/gated-data": data}) as running:
        running.gated |= {"acme/gated", "acme/gated-data"}
        yield running


@pytest.fixture(scope="session")
def models(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    return lambda name: request.getfixturevalue(name)


def found(job: Path, environ: dict[str, str]) -> list[Problem]:
    """What `finetune validate` would print."""
    try:
        problems = validate(load_job(job), environ)
    except FineTuneError as error:
        problems = list(error.problems)
    return located(problems, job)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_caught_before_training(
    case: Case, tmp_path: Path, models: Callable[[str], Path], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = case.lay_out(tmp_path, models)
    loaded = set(sys.modules)
    problems = found(Path(job.name), {"HF_ENDPOINT": hub.endpoint})
    told = [(problem.code, problem.field, problem.lines[0] if problem.lines else None) for problem in problems]
    expect = case.expect
    assert (expect.code, expect.field, expect.line) in told, "\n".join(map(str, problems)) or "no problem found"
    assert sorted(problem.code for problem in problems) == sorted([expect.code, *expect.also])
    for problem in problems:
        assert problem.message
        assert problem.cure
    assert not list(tmp_path.glob("store/**/*"))
    assert not multiprocessing.active_children()
    assert not [name for name in set(sys.modules) - loaded if name.startswith(TRAINS)]


def test_there_are_at_least_120_of_many_kinds() -> None:
    assert len(CASES) >= 120
    assert max(codes(CASES).values()) <= 5
    assert len(codes(CASES)) >= 26


def test_each_names_the_thread_in_which_it_happened() -> None:
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#[0-9]+", case.thread) for case in CASES)
    assert max(Counter(case.thread for case in CASES).values()) <= 2
    assert len({case.says for case in CASES}) == len(CASES)


def test_the_docs_list_them() -> None:
    assert DOCS.read_text() == page(), "run: python -m tests.bad_inputs > docs/bad-inputs.md"


def test_lines_of_the_job_file_are_those_of_the_field(tmp_path: Path, models: Callable[[str], Path]) -> None:
    data = ("spec.dataset.train", "spec.dataset.eval")  # their lines are those of a data file
    of_the_job = [one for one in CASES if one.text is None and not one.expect.field.startswith(data)]
    assert len(of_the_job) > 80
    for case in of_the_job:
        folder = tmp_path / case.name
        folder.mkdir()
        case.lay_out(folder, models)
        assert case.expect.line, case.name
        line = (folder / JOB).read_text().splitlines()[case.expect.line - 1]
        assert any(f"{name}:" in line for name in re.findall(r"\w+", case.expect.field)), (case.name, line)
