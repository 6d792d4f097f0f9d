"""A prepare stage that is killed in the middle is gone on with by its next attempt, on another disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.contract import dataset_prefix, run_prefix
from finetune_api.messages import Manifest
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare import check_keeper
from finetune_trainer.prepare.data import lines, streams
from finetune_trainer.prepare.prepare_stage import prepare
from finetune_trainer.prepare.tokens import keeping, split_writer
from finetune_trainer.storage import ObjectStore, open_store, read_manifest
from tests.support.chats import write_chat_rows
from tests.support.models import make_llama
from tests.support.s3 import start_s3

SIZES = {
    (check_keeper, "WORTH_KEEPING"): 0,
    (lines, "PIECE"): 900,
    (streams, "BLOCK"): 900,
    (split_writer, "BATCH_TOKENS"): 300,
    (split_writer, "SHARD_BYTES"): 4000,
}
KILLED = """
import os, pathlib, signal, sys
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.prepare.prepare_stage import prepare
from finetune_trainer.prepare.tokens import keeping
from finetune_trainer.storage import open_store
from tests.local.test_killed_prepare import SIZES

for (module, name), size in SIZES.items():
    setattr(module, name, size)
job, work = FineTuneJob.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2])
put, states = keeping.StoredShards._put, []

def killed_after_three(self, pieces, state):
    put(self, pieces, state)
    states.append(state)
    if len(states) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

keeping.StoredShards._put = killed_after_three
prepare(job, open_store(job.spec.storage.uri), "uid", work, os.environ)
"""


def job_of(folder: Path, model: Path, storage: str) -> FineTuneJob:
    spec = {
        "model": {"uri": f"file://{model}"},
        "dataset": {"train": f"file://{folder / 'train.jsonl'}", "eval": {"split": 0.2}, "chatTemplate": "chatml"},
        "method": {"type": "lora"},
        "storage": {"uri": storage},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "job"}}
    return FineTuneJob.model_validate_json(json.dumps(head | {"spec": spec}))


def made(store: ObjectStore, job: FineTuneJob, work: Path, said: list[str]) -> Manifest:
    plan = prepare(job, store, "uid", work, {}, said.append).plan
    manifest = read_manifest(store, dataset_prefix(plan.dataset.sha256))
    assert manifest is not None
    assert list(store.list(run_prefix("default", "job", "uid") + "prepare/")) == []  # nothing is left over
    return manifest


def test_a_killed_stage_goes_on_after_its_last_shard_and_makes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for (module, name), size in SIZES.items():
        monkeypatch.setattr(module, name, size)
    write_chat_rows(tmp_path / "train.jsonl", 100)
    model = make_llama(tmp_path / "llama")
    undisturbed = job_of(tmp_path, model, f"file://{tmp_path}/store")
    expected = made(open_store(undisturbed.spec.storage.uri, {}), undisturbed, tmp_path / "one", [])
    with start_s3(tmp_path / "s3") as server:
        job = job_of(tmp_path, model, f"{server.make_bucket('data')}/team")
        given = job.model_dump_json(by_alias=True, exclude_unset=True)
        command = [sys.executable, "-c", KILLED, given, str(tmp_path / "two")]
        ended = subprocess.run(command, env={**os.environ, **server.environ}, check=False)
        assert ended.returncode == -signal.SIGKILL
        store = open_store(job.spec.storage.uri, server.environ)
        state = json.loads(store.get(run_prefix("default", "job", "uid") + f"prepare/{keeping.STATE}"))
        before = len(state["splits"]["train"]["shards"]) + len(state["splits"]["eval"]["shards"])
        assert before >= 3
        said: list[str] = []
        again = made(store, job, tmp_path / "another disk", said)
        assert any("every row was checked by an earlier attempt" in line for line in said), said
        assert any(f"going on after {before} files" in line for line in said), said
        fetched = {entry.path: entry for entry in again.files if entry.path.endswith(".arrow")}
        for name, entry in fetched.items():
            assert store.hash(dataset_prefix(str(again.info["sha256"])) + name).sha256 == entry.sha256
    assert again.info == expected.info
    assert sorted(again.files, key=lambda one: one.path) == sorted(expected.files, key=lambda one: one.path)
