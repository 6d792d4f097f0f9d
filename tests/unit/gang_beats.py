"""Beats and gangs for tables: two nodes of generation 7, as last heard."""

from dataclasses import replace

from finetune_api.beats import AgentState, Beat, CheckpointId, PartId, RankReport, RankState
from finetune_trainer.agent import roster
from finetune_trainer.agent.roster import Gang, Rendezvous

NOW = 1000.0
GENERATION = 7


def part(step: int, node_rank: int, generation: int = GENERATION - 1) -> PartId:
    return PartId(step=step, generation=generation, node_rank=node_rank)


def saved(step: int, generation: int = GENERATION - 1) -> CheckpointId:
    return CheckpointId(step=step, generation=generation)


def committed(*steps: int) -> frozenset[CheckpointId]:
    return frozenset(saved(step) for step in steps)


def on_disk(node_rank: int, *steps: int) -> tuple[PartId, ...]:
    return tuple(part(step, node_rank) for step in steps)


def beat(node: int, state: AgentState = AgentState.READY, **values: object) -> Beat:
    fields = {"incarnation": f"i{node}", "host": f"host-{node}", "generation": GENERATION, **values}
    return Beat.model_validate({"node": node, "state": state, **fields})


def rank(number: int, state: RankState = RankState.RUNNING, **values: object) -> RankReport:
    return RankReport.model_validate({"rank": number, "state": state, **values})


def gang(*beats: Beat, heard_at: float = NOW, **values: object) -> Gang:
    empty = Gang(nodes=2, last_step=100, generation=GENERATION, stored=GENERATION, since=heard_at)
    for one in beats:
        empty = roster.hear(empty, one, heard_at)
    return replace(empty, **values)  # type: ignore[arg-type]


MEET = Rendezvous(
    ranks={0: 0, 1: 1}, incarnations={0: "i0", 1: "i1"}, host="host-0", port=1, resume=saved(40), since=NOW
)
READY = (beat(0), beat(1))
RUNNING = tuple(beat(node, AgentState.RUNNING, ranks=(rank(node),)) for node in range(2))
TRAINED = tuple(beat(node, AgentState.ENDED, ranks=(rank(node, RankState.FINISHED),)) for node in range(2))
EARLY = tuple(
    beat(
        node,
        AgentState.ENDED,
        ranks=(rank(node, RankState.FINISHED),),
        complete=(part(20, node, GENERATION), part(40, node, GENERATION)),
    )
    for node in range(2)
)
DRAINED = tuple(
    beat(node, AgentState.ENDED, ranks=(rank(node, RankState.DRAINED),), draining=node == 1) for node in range(2)
)


WATCHDOG = "[rank0]:[E ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective operation timeout"


def died(node: int, exit_code: int, ended_at: float = 1.0, tail: str = "") -> Beat:
    report = rank(node, RankState.FAILED, exit_code=exit_code, ended_at=ended_at, step=55, log_tail=tail)
    return beat(node, AgentState.ENDED, ranks=(report,))


def running(*beats: Beat, **values: object) -> Gang:
    return gang(*beats, rendezvous=MEET, **values)


def replace_beat(one: Beat, **values: object) -> Beat:
    return one.model_copy(update=values)
