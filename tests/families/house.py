"""What a case goes through: trained by two ranks, resumed from a checkpoint, exported, loaded by vanilla libraries."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from finetune_api.contract import ExitCode, File, checkpoint_name, run_prefix
from finetune_api.messages import CheckpointInfo, Manifest, MethodType, ModelFacts, ProblemType, Task
from finetune_api.plan import Plan, PlannedEmbedding
from finetune_trainer.export.stage import export
from finetune_trainer.model.families import family_of
from finetune_trainer.model.files import CONFIG
from finetune_trainer.prepare.plan.experts import mixture_of, mixture_rules
from finetune_trainer.storage import FolderStore, hash_file, upload_tree
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.batches.masking import EVALUATED, MaskedRows, masking_of
from tests.families.cases import Case
from tests.local.harness import IDS, Bench, Run, make_plan, write_dataset
from tests.support.models import MAKERS
from tests.support.prepared import plain
from tests.support.vanilla import Artifact, Vanilla

RUN = run_prefix("default", "family", "uid")
STEPS, HALF = 6, 3
ROWS = 48


@dataclass(frozen=True)
class House:
    """What the cases share: a warm zygote, a process with vanilla libraries, a folder for models; and the losses that
    were seen, by family, task and method."""

    bench: Bench
    vanilla: Vanilla
    folder: Path
    seen: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def model(self, family: str) -> Path:
        """A tiny model of the family, made once."""
        folder = self.folder / "models" / family
        if not folder.exists():
            MAKERS[family](folder)
        return folder

    def passes(self, case: Case, folder: Path) -> None:
        """Goes through all of it.

        Raises:
            AssertionError: says what went wrong.
        """
        base = self.model(case.family)
        store = FolderStore(folder / "storage")
        upload_tree(store, base, "models/tiny/", "model")
        data = write_dataset(folder / "data", case.task, rows=ROWS, problem=case.problem, end=end_of(base))
        plan = plan_of(case, base)
        whole = self.bench.run(plan, base, data, folder / "whole")
        assert set(whole.exit_codes) == {ExitCode.OK}, whole.logs
        halfway_through, last = (evaluation["eval_loss"] for evaluation in whole.evaluations())
        # The losses of two batches of embeddings differ by a half, as each has other texts to choose from. So the rows
        # that are evaluated are compared with themselves.
        first = halfway_through if case.task is Task.EMBEDDING else whole.losses()[1]
        assert math.isfinite(last)
        assert last < first, f"training must lower the loss: {first} at first, {last} held out at the end"
        known = self.seen.setdefault((case.family, case.kind, case.method), last)
        assert last == pytest.approx(known, abs=1e-3), "the same in every ZeRO stage"
        halfway = folder / "whole" / "node-{rank}" / checkpoint_name(HALF, 1)
        resumed = self.bench.run(plan, base, data, folder / "resumed", resume=halfway, generation=2)
        assert set(resumed.exit_codes) == {ExitCode.OK}, resumed.logs
        same_end(whole, resumed)
        made = exported(plan, store, folder / "resumed", resumed, folder / "export")
        rows = evaluated(plan, base, data, folder / "rows.arrow")
        measured = self.vanilla.loss(Artifact.of(plan, made), rows)
        assert measured == pytest.approx(last, abs=1e-4), "as the exported artifact is loaded by anybody"


def end_of(base: Path) -> int | None:
    """The token that ends every row of an encoder-decoder, whose classifier reads a row there."""
    config = json.loads((base / CONFIG).read_text())
    return int(config["eos_token_id"]) if config.get("is_encoder_decoder") else None


def plan_of(case: Case, base: Path) -> Plan:
    """Six steps, evaluated and saved after three, with the adapter that prepare chooses."""
    facts = ModelFacts(
        name="tiny", commit="0", prefix="models/tiny/", source="file://tiny", model_type=case.family, parameters=1,
        size_bytes=1,
    )  # fmt: skip
    swings = case.problem is ProblemType.REGRESSION and case.method is MethodType.FULL  # squared errors, in six steps
    rate = 1e-3 if swings else 5e-3
    pooling = "mean" if family_of(case.family).reads_both_ways else "last"
    compared = PlannedEmbedding(texts=3, dimension=64, pooling=pooling) if case.task is Task.EMBEDDING else None
    mixture = mixture_of(json.loads((base / CONFIG).read_text()), case.task)
    own = {name: value for name, (value, _) in (mixture_rules(mixture, {}) if mixture else {}).items()}
    plain_plan = make_plan(case.task, case.method)
    return make_plan(
        case.task,
        case.method,
        lora={**plain_plan.lora, **own} if plain_plan.lora else {},
        learning_rate=rate,
        stage=case.stage,
        problem=case.problem,
        model=facts,
        embedding=compared,
        max_steps=STEPS,
        checkpoint_every_steps=HALF,
        eval_every_steps=HALF,
    )


def same_end(whole: Run, resumed: Run) -> None:
    """A run that went on from a checkpoint takes the steps that were left, to the same numbers."""
    assert sorted(resumed.losses()) == list(range(HALF + 1, STEPS + 1))
    for step, loss in resumed.losses().items():
        assert loss == whole.losses()[step], f"step {step}"
    assert resumed.evaluations()[-1] == whole.evaluations()[-1]


def exported(plan: Plan, store: FolderStore, trained: Path, run: Run, work: Path) -> Path:
    """The artifact of a run's last checkpoint, committed as agents commit it."""
    name = checkpoint_name(STEPS, 2)
    shares = {f"node-{node}": trained / f"node-{node}" / name for node in range(plan.layout.nodes)}
    prefix = f"{RUN}checkpoints/{name}/"
    entries = []
    for path, key in files_of(shares):
        store.put_file(prefix + key, path)
        entries.append(hash_file(path).model_copy(update={"path": key}))
    info = CheckpointInfo(
        step=STEPS,
        generation=2,
        nodes=plan.layout.nodes,
        processes_per_node=1,
        zero_stage=plan.layout.zero_stage,
        samples=STEPS * plan.layout.global_batch,
        metrics=run.evaluations()[-1],
    )
    manifest = Manifest(kind="checkpoint", files=tuple(entries), created="2026-01-01T00:00:00+00:00", info=vars(info))
    store.put(prefix + File.MANIFEST, manifest.to_json().encode())
    result = export(plan, store, RUN, work, report=lambda line: None)
    return Path(result.artifacts[0].uri.removeprefix("file://"))


def files_of(shares: dict[str, Path]) -> Iterable[tuple[Path, str]]:
    """The files of a checkpoint that export may look at, with their keys."""
    for node, share in shares.items():
        for path in sorted(share.iterdir()):
            if path.is_file():
                yield path, f"{node}/{path.name}"


def evaluated(plan: Plan, base: Path, data: Path, target: Path) -> Path:
    """The rows that were evaluated; for masked-lm as the model read them, with what was hidden in `labels`."""
    if plan.task is not Task.MASKED_LM:
        return plain(data, "eval")
    rule = masking_of(plan, AutoTokenizer.from_pretrained(base))
    rows = list(MaskedRows(ArrowRows(data, "eval"), rule, EVALUATED))
    table = pa.table({name: pa.array([row[name] for row in rows], IDS) for name in ("input_ids", "labels")})
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return target
