"""docs/support.md is made of docs/support.json, and names every family and task that the gate lets through."""

from finetune_api.messages import Task
from finetune_trainer.model.families import FAMILIES
from finetune_trainer.probe.question import ProbeAnswer
from tests.families import architectures
from tests.families.cases import ELSEWHERE, each_family, matrix
from tests.families.support import PAGE, PASSED, chosen, load, page
from tests.support.models import MAKERS

ASKED = ("llama", "gpt2", "gpt_neox", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma", "phi")
ASKED += ("bert", "roberta", "distilbert", "modernbert", "t5", "bart")


def test_the_page_is_that_of_the_results() -> None:
    assert PAGE.read_text() == page(load())


def test_the_page_of_architectures_is_that_of_the_answers() -> None:
    assert architectures.PAGE.read_text() == architectures.page(architectures.load())


def test_nothing_that_is_accepted_has_failed() -> None:
    assert not {name: how for name, how in load()["cases"].items() if how != PASSED}


def test_every_family_has_a_case_in_make_test_and_all_of_its_tasks_in_the_matrix() -> None:
    assert {case.family for case in each_family()} == set(ASKED)
    assert {(case.family, case.task) for case in matrix()} == {
        (family, task) for family, one in FAMILIES.items() for task in set(one.tasks) - ELSEWHERE
    }
    assert MAKERS.keys() == FAMILIES.keys(), "each has a tiny model"
    taken = each_family()
    assert {case.task for case in taken} == set(Task) - ELSEWHERE
    assert {(case.method, case.stage > 1) for case in taken} == {(case.method, case.stage > 1) for case in matrix()}


def test_what_was_not_run_is_never_shown_as_passed() -> None:
    case = next(matrix())
    shown = page({"versions": {}, "machine": "", "cases": {str(case): PASSED}})
    assert shown.count("| yes ") == 1
    assert "not run" in shown
    assert "**failed**" in page({"versions": {}, "machine": "", "cases": {str(case): "failed: why"}})


def test_a_run_is_limited_to_families_tasks_methods_and_stages() -> None:
    wanted = [case for case in matrix() if chosen(["t5", "gemma"], ["causal-lm", "seq2seq"], ["lora"], [2, 3])(case)]
    assert [str(case) for case in wanted] == [
        "gemma-causal-lm-lora-zero2",
        "gemma-causal-lm-lora-zero3",
        "t5-seq2seq-lora-zero2",
        "t5-seq2seq-lora-zero3",
    ]
    assert len([case for case in matrix() if chosen()(case)]) == len(list(matrix()))


def test_a_mixture_of_experts_is_asked_about_with_the_adapter_that_is_planned_for_it() -> None:
    question = next(probe for probe in architectures.probes() if str(probe) == "olmoe-causal-lm-lora-zero2").question()
    assert question.lora["lora_dropout"] == 0
    assert question.lora["target_parameters"] == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    plain = next(probe for probe in architectures.probes() if str(probe) == "olmo-causal-lm-lora-zero2").question()
    assert plain.lora == architectures.LORA


def test_a_proven_family_is_one_line_of_the_page_whatever_was_asked() -> None:
    known = {
        "versions": {},
        "machine": "",
        "probes": {"llama-causal-lm-lora-zero2": architectures.as_record(ProbeAnswer())},
    }
    assert architectures.page(known).count("| llama |") == 1
