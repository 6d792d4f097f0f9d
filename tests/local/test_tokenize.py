"""Chat data through the whole stage: the template that was used goes along, packs are what is planned."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from finetune_api.contract import dataset_prefix
from finetune_api.errors import DataError, SpecError
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.prepare_stage import Prepared, prepare
from finetune_trainer.prepare.tokens.templates import CHATML
from finetune_trainer.storage import ObjectStore, download_tree, open_store
from tests.support.models import make_bert, make_llama
from tests.support.prepared import plain_table

QUESTIONS = ("How do I reset my password?", "Where is the invoice?", "Why is the printer out of paper again?")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    with path.open("w") as file:
        for index in range(60):
            answer = f"Please look at page {index * 7} of the manual, it has all that you need for case {index}."
            turns = [("user", f"{QUESTIONS[index % 3]} Case {index}."), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def store_of(folder: Path) -> ObjectStore:
    return open_store(f"file://{folder}/store", {})


def run(folder: Path, model: Path, train: Path, lines: list[str] | None = None, **dataset: Any) -> Prepared:
    spec = {
        "model": {"uri": f"file://{model}"},
        "dataset": {"train": f"file://{train}", **dataset},
        "method": {"type": "lora"},
        "storage": {"uri": f"file://{folder}/store"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "chat"}}
    job = FineTuneJob.model_validate_json(json.dumps(head | {"spec": spec}))
    uid = f"uid-{len(list(folder.glob('store/jobs/**/plan.json')))}"
    said = [] if lines is None else lines
    return prepare(job, store_of(folder), uid, folder / "work", {}, said.append)


def stored(folder: Path, plan: Plan) -> Path:
    target = folder / "fetched"
    download_tree(store_of(folder), dataset_prefix(plan.dataset.sha256), target)
    return target


def table(folder: Path, plan: Plan) -> pa.Table:
    return plain_table(stored(folder, plan), "train")


def test_the_template_that_was_used_is_stored_with_the_data(tmp_path: Path, llama: Path, train: Path) -> None:
    made = run(tmp_path, llama, train, chatTemplate="chatml")
    # the tokenizer begins texts with BOS, and this template does not write it
    assert (stored(tmp_path, made.plan) / "chat_template.jinja").read_text() == "{{- bos_token }}" + CHATML
    facts = made.plan.dataset.train
    assert 0 < facts.trained_tokens < facts.tokens
    assert "plain text" in made.result.note  # the model knows no <|im_start|>


def test_packed_rows_are_what_the_plan_counts(tmp_path: Path, llama: Path, train: Path) -> None:
    plain = run(tmp_path, llama, train, chatTemplate="chatml").plan
    packed = run(tmp_path, llama, train, chatTemplate="chatml", packing=True).plan
    facts = packed.dataset.train
    assert facts.examples == plain.dataset.train.rows == 60
    assert facts.tokens == plain.dataset.train.tokens
    assert facts.rows < 60
    assert facts.longest <= packed.max_length
    rows = table(tmp_path, packed)
    assert rows.column_names == ["input_ids", "labels", "seq_lengths"]
    assert rows.num_rows == facts.rows


def test_other_template_same_data_is_another_data_set_and_the_same_one_is_not_read_again(
    tmp_path: Path, llama: Path, train: Path
) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(CHATML.replace("<|im_end|>", "</s>"))
    first = run(tmp_path, llama, train, chatTemplate="chatml").plan
    other = run(tmp_path, llama, train, chatTemplate=str(own)).plan
    assert other.dataset.sha256 != first.dataset.sha256
    lines: list[str] = []
    again = run(tmp_path, llama, train, lines, chatTemplate="chatml").plan
    assert again.dataset == first.dataset
    assert any("not read again" in line for line in lines)


def test_chat_data_for_a_model_without_a_template_is_refused_with_the_cure(
    tmp_path: Path, llama: Path, train: Path
) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, llama, train)
    (problem,) = caught.value.problems
    assert problem.code == "NoChatTemplate"
    assert "chatml" in problem.cure


def test_pairs_are_chats_or_bare_text_and_chats_without_a_template_are_refused(
    tmp_path: Path, llama: Path, train: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"prompt": f"Case {n}?", "completion": f" See {n}."}) + "\n" for n in range(60))
    )
    chats = run(tmp_path, llama, pairs, chatTemplate="chatml")
    bare = run(tmp_path, llama, pairs, chatTemplate="none")
    assert "chatTemplate: none trains them as bare text" in chats.result.note
    assert chats.plan.dataset.train.tokens > bare.plan.dataset.train.tokens + 60 * 10
    assert chats.plan.dataset.ends == bare.plan.dataset.ends  # the model knows no <|im_end|>
    assert not (stored(tmp_path, bare.plan) / "chat_template.jinja").exists()
    with pytest.raises(DataError, match=r"and spec\.dataset\.chatTemplate is none"):
        run(tmp_path, llama, train, chatTemplate="none")


def test_packing_a_classification_job_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {index}", "label": str(index % 2)}) + "\n" for index in range(9)))
    with pytest.raises(SpecError) as caught:
        run(tmp_path, make_bert(tmp_path / "bert"), rows, packing=True)
    assert [problem.code for problem in caught.value.problems] == ["PackingNotForTask"]
    assert not list(tmp_path.glob("store/datasets/*"))


def test_the_parent_of_the_processes_never_imports_torch(tmp_path: Path, llama: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from finetune_api.messages import Task\n"
        "from finetune_trainer.prepare.tokens.tokenizer import load_fast_tokenizer\n"
        "import finetune_trainer.prepare.tokens.tokenize, finetune_trainer.prepare.tokens.packing as packing\n"
        "if __name__ == '__main__':\n"
        f"    assert load_fast_tokenizer(Path({str(llama)!r}), Task.CAUSAL_LM).eos_id == 2\n"
        "    packing._trl()\n"
        "    heavy = {'torch', 'transformers', 'datasets'} & sys.modules.keys()\n"
        "    assert not heavy, heavy\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    subprocess.run([sys.executable, str(path)], check=True, cwd=Path.cwd())
