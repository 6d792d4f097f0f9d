"""What holds for every plan: more memory never makes it slower, the global batch is exactly the one that was asked for,
and what does not fit is never returned."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType, Task
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.gpus import GIB, GPUS
from finetune_trainer.prepare.plan.machine import GpuHint, Machine
from finetune_trainer.prepare.plan.rank_layout import Request, best, layouts
from tests.unit.plan_models import decoder
from tests.unit.test_planner import dataset, planned

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no error
MODELS = [decoder(2048, 4, 5504, 32000), decoder(1024, 2, 2816, 4000), decoder(4096, 8, 14336, 128256)]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Anything that a job may ask for."""
    gpu = draw(st.sampled_from(GPUS))
    on_gpu = draw(st.booleans())
    nodes, processes = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 8]))
    machine = Machine(
        "gpu" if on_gpu else "cpu",
        draw(st.integers(1, 200)) * GIB,
        "test",
        False,
        nodes,
        processes,
        gpu if on_gpu else None,
        host_bytes=draw(st.sampled_from([0, 16, 256])) * GIB,
    )
    micro, accumulation = draw(st.sampled_from([(None, None), (2, None), (None, 4)]))
    unit = nodes * processes * (micro or 1) * (accumulation or 1)
    tokens = draw(st.sampled_from([64, 512, 4096]))
    return Request(
        architecture=draw(st.sampled_from(MODELS)),
        method=draw(st.sampled_from(list(MethodType))),
        machine=machine,
        rows=unit * draw(st.integers(1, 12)),
        rows_given=True,
        tokens=tokens,
        mean_tokens=tokens / 2,
        stage=draw(st.sampled_from([None, None, 0, 1, 2, 3])),
        recomputed=draw(st.sampled_from([None, None, True, False])),
        micro=micro,
        accumulation=accumulation,
    )


@QUIET
@given(requests(), st.integers(0, 100), st.integers(0, 512))
def test_more_memory_never_gives_a_slower_plan(request: Request, more: int, more_host: int) -> None:
    before = best(request)
    assume(before is not None)
    assert before is not None
    machine = request.machine
    larger = replace(machine, memory_bytes=machine.memory_bytes + more * GIB)
    if machine.host_bytes:
        larger = replace(larger, host_bytes=machine.host_bytes + more_host * GIB)
    after = best(replace(request, machine=larger))
    assert after is not None
    assert after.speed.seconds <= 1.05 * before.speed.seconds  # it may take one that is slower by so little


@QUIET
@given(requests())
def test_the_global_batch_is_exactly_what_was_asked(request: Request) -> None:
    for layout in layouts(request):
        load = layout.load
        assert load.micro * load.accumulation * request.machine.world_size == request.rows
        assert request.micro in (None, load.micro)
        assert request.accumulation in (None, load.accumulation)
        assert request.stage in (None, load.zero_stage)
        assert request.recomputed in (None, load.recomputed)


@QUIET
@given(requests())
def test_what_is_chosen_fits_and_nothing_about_as_fast_needs_less_memory(request: Request) -> None:
    chosen = best(request)
    fitting = [layout for layout in layouts(request) if layout.memory.bytes <= request.machine.usable_bytes]
    if chosen is None:
        assert not [layout for layout in fitting if layout.fits(request.machine)]
        return
    assert chosen.memory.bytes <= request.machine.usable_bytes <= request.machine.memory_bytes
    assert chosen.memory.host_bytes <= (request.machine.host_bytes or chosen.memory.host_bytes)
    allowed = 1.05 * min(one.speed.seconds for one in fitting if one.fits(request.machine))
    assert chosen.speed.seconds <= allowed
    near = [one for one in fitting if one.fits(request.machine) and one.speed.seconds <= allowed]
    assert chosen.memory.bytes == min(one.memory.bytes for one in near)


@QUIET
@given(
    gpus=st.integers(1, 8),
    nodes=st.integers(1, 4),
    gib=st.integers(8, 141),
    factor=st.integers(1, 8),
    longest=st.integers(8, 2048),
    method=st.sampled_from(["lora", "full"]),
    data=st.sampled_from([10, 500, 20_000]),
)
def test_a_job_gets_its_global_batch_within_its_memory_or_is_refused(
    gpus: int, nodes: int, gib: int, factor: int, longest: int, method: str, data: int
) -> None:
    total = gpus * nodes * factor
    try:
        plan = planned(
            Task.CAUSAL_LM,
            dataset(data, longest),
            MODELS[0],
            2048,
            GpuHint("", gib << 10),
            method={"type": method},
            nodes=nodes,
            training={"global_batch_size": total},
            resourcesPerNode={"limits": {"nvidia.com/gpu": gpus}},
        )
    except SpecError as error:
        event(error.problems[0].code)
        return
    assert (
        plan.layout.global_batch == total == plan.layout.micro_batch * plan.layout.gradient_accumulation * gpus * nodes
    )
    assert plan.prediction.memory is not None
    assert plan.prediction.memory.bytes <= 0.9 * plan.prediction.memory.limit
    assert plan.prediction.memory.limit == gib << 30


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.parameters / 1e9:.1f}B")
def test_a_plan_is_the_same_whenever_it_is_made(model: Architecture) -> None:
    limits = {"limits": {"nvidia.com/gpu": 8}}
    hint = GpuHint("", 40960)
    plans = [planned(Task.CAUSAL_LM, shape=model, hint=hint, resourcesPerNode=limits) for _ in range(2)]
    assert plans[0].to_json() == plans[1].to_json()
