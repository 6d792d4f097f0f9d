"""Measures and rules of a judgement, on values of rows: formulas beside those of the usual libraries, and each rule."""

from collections.abc import Sequence

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF
from sklearn.metrics import f1_score, r2_score

from finetune_api.messages import ProblemType, Task
from finetune_trainer.evaluations.records import Amplification, EvaluationRecord
from finetune_trainer.judge.general_texts import GENERAL_TEXTS, spoken_languages
from finetune_trainer.judge.judge_rules import findings_of
from finetune_trainer.judge.judgement_records import JudgedMeasure, Judgement
from finetune_trainer.judge.measured_sides import measures_of
from finetune_trainer.judge.memorised import alternatives, exposure, is_verbatim, prefix_of, sampled
from finetune_trainer.judge.nearness import chrf_counts, chrf_of, chrf_score, wins
from finetune_trainer.judge.nonsense import is_json, repeats_itself
from finetune_trainer.judge.resampling import difference, f1_of, mean_of, pearson_of, r2_of, ratio_of, resampled
from finetune_trainer.judge.sides import JudgedAnswer, Shared, Side
from finetune_trainer.judge.wrong_languages import wrong_languages

PAIRS = [
    ("the cat sat on the mat", "a cat sat on a mat"),
    ("", "nothing was said"),
    ("völlig anders", "ganz gleich"),
    ("equal", "equal"),
    ("ab", "abc"),
]


def test_chrf_is_that_of_sacrebleu_for_each_row_and_for_all() -> None:
    counts = [chrf_counts(*pair) for pair in PAIRS]
    each = [CHRF().sentence_score(answer, [right]).score for answer, right in PAIRS]
    np.testing.assert_allclose(chrf_score(np.stack(counts)), each, atol=1e-9)
    answers, rights = zip(*PAIRS, strict=True)
    whole = CHRF().corpus_score(list(answers), [list(rights)]).score
    assert float(chrf_of(counts)(np.ones((1, len(PAIRS))))[0]) == pytest.approx(whole)


@pytest.mark.parametrize("average", ["macro", "weighted", "micro"])
def test_f1_is_that_of_scikit_learn_for_all_rows_and_for_redrawn_ones(average: str) -> None:
    draw = np.random.default_rng(1)
    truth, guess = draw.integers(0, 4, 60), draw.integers(0, 3, 60)
    hot = [one[:, None] == np.arange(5) for one in (guess, truth)]
    weights = draw.multinomial(60, np.full(60, 1 / 60), 3)
    for own in (np.ones(60, int), *weights):
        seen = f1_of(hot[0], hot[1], average)(own[None].astype(float))[0]
        rows = np.repeat(np.arange(60), own)
        expected = f1_score(truth[rows], guess[rows], average=average, zero_division=0.0)
        assert seen == pytest.approx(expected)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        base = draw.normal(2.0, 1.0, 80)
        tuned = base - 0.3 + draw.normal(0.0, 0.5, 80)
        gap = resampled(difference(mean_of(tuned), mean_of(base)), 80, seed)
        covered += gap.low <= -0.3 <= gap.high
    assert 180 <= covered <= 200


def test_an_interval_is_the_same_again_and_narrower_for_pairs_than_for_strangers() -> None:
    draw = np.random.default_rng(3)
    base = draw.normal(2.0, 1.0, 100)
    tuned, ones = base - 0.1, np.ones(100)
    gap = resampled(difference(ratio_of(tuned, ones), ratio_of(base, ones)), 100)
    assert gap == resampled(difference(ratio_of(tuned, ones), ratio_of(base, ones)), 100)
    assert gap.value == pytest.approx(-0.1)
    assert gap.high - gap.low < 1e-9


def test_the_nearer_answer_wins_and_ties_count_half() -> None:
    right = "the cat sat on the mat"
    near, far = chrf_counts("the cat sat on a mat", right), chrf_counts("dogs", right)
    assert wins([near, far, near], [far, near, near]).tolist() == [1.0, 0.0, 0.5]


WORDS = [word for text in GENERAL_TEXTS["en"] for word in text.split()]
REPEATED = {
    "a word over and over": (["so", "so", "so", "so", "so", "so", "so", "so", "so"], True),
    "a phrase four times": (["I", "do", "not", "know", "."] * 4, True),
    "a phrase three times": (["I", "do", "not", "know", "."] * 3, False),
    "four words": (["no"] * 4, False),
    "a long loop with small changes": ([*(["a", "b", "c", "d", "e", "f"] * 3), "x"] * 4, True),
    "prose": (WORDS, False),
}


@pytest.mark.parametrize(("tokens", "expected"), REPEATED.values(), ids=REPEATED)
def test_an_answer_repeats_itself(tokens: Sequence[str], expected: bool) -> None:
    assert repeats_itself(tokens) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"a": 1}', True), ("```json\n[1, 2]\n```", True), ("17", False), ('{"a": 1', False), ("", False)],
)
def test_json_is_an_object_or_a_list(text: str, expected: bool) -> None:
    assert is_json(text) is expected


def test_an_answer_in_a_language_that_no_reference_has_is_found() -> None:
    english = list(GENERAL_TEXTS["en"])
    german = list(GENERAL_TEXTS["de"])
    assert wrong_languages([*english[:4], *german], english[4:12]) == [False] * 4 + [True] * 4
    assert wrong_languages(german, german + english) == [False] * 4
    assert wrong_languages(["kurz"] * 4, english[:4]) == [False] * 4
    assert wrong_languages(german, ["def f(x): return x"] * 4) is None


def test_the_languages_that_a_base_speaks_are_those_that_cost_it_little() -> None:
    assert spoken_languages({"en": 0.8, "de": 1.2, "zh": 2.5}) == ("en", "de")


# ---------------------------------------------------------------- memorised rows


def test_a_row_is_continued_from_its_first_half_if_enough_of_it_is_left() -> None:
    ids = np.arange(100)
    one = prefix_of(ids, 20, 100)
    assert one is not None
    assert (len(one.prompt), one.continuation.tolist()) == (60, list(range(60, 92)))
    assert prefix_of(ids, 90, 100) is None
    assert is_verbatim([*range(60, 92), 5], one.continuation)
    assert not is_verbatim([*range(60, 91), 5], one.continuation)
    assert sampled(1000, 5, 0) == sampled(1000, 5, 0)
    assert len(sampled(3, 50, 0)) == 3


def test_a_canary_is_compared_with_other_digits_in_its_own_form() -> None:
    texts = alternatives("code 48-213.", 0)
    assert texts[0] == "code 48-213."
    assert len(set(texts)) == 256
    assert all(one.startswith("code ") and one[7] == "-" and len(one) == 12 for one in texts)
    assert len(alternatives("12", 0)) == 100


def test_exposure_is_the_rank_in_bits() -> None:
    assert exposure([1.0, *np.linspace(2, 3, 255)]) == 8.0
    assert exposure([2.0, *[1.0] * 255]) == 0.0
    assert exposure([1.0] * 256) == 0.0  # equal to all others


# ---------------------------------------------------------------- rules


def measures(**changes: JudgedMeasure) -> list[JudgedMeasure]:
    clean = {
        "loss": JudgedMeasure(name="loss", tuned=1.0, base=2.0, low=-1.2, high=-0.8, higher_is_better=False, rows=100),
        "win_share": JudgedMeasure(name="win_share", tuned=0.8, low=0.7, high=0.9, rows=100),
    }
    return list((clean | changes).values())


def share(name: str, tuned: float, low: float, expected: float = 0.0) -> JudgedMeasure:
    return JudgedMeasure(name=name, tuned=tuned, expected=expected, low=low, high=low + 0.1, rows=100)


def loss(base: float, low: float, high: float, name: str = "loss", rows: int = 100) -> JudgedMeasure:
    tuned = base + (low + high) / 2
    return JudgedMeasure(name=name, tuned=tuned, base=base, low=low, high=high, higher_is_better=False, rows=rows)


RULES = {
    "better": ({}, ["Better"]),
    "worse": ({"loss": loss(2.0, 0.1, 0.3)}, ["Worse"]),
    "not shown to be better": ({"loss": loss(2.0, -0.3, 0.1)}, ["NotBetter"]),
    "too few rows to say so": ({"loss": loss(2.0, -0.3, 0.1, rows=12)}, []),
    "the base's answers are nearer": (
        {"win_share": JudgedMeasure(name="win_share", tuned=0.3, low=0.2, high=0.4, rows=100)},
        ["LosesToBase", "Better"],
    ),
    "answers to no question": (
        {"prompt_gain": JudgedMeasure(name="prompt_gain", tuned=0.01, base=0.5, low=-0.01, high=0.03, rows=100)},
        ["IgnoresPrompts", "Better"],
    ),
    "answers to the question": (
        {"prompt_gain": JudgedMeasure(name="prompt_gain", tuned=0.1, base=0.5, low=0.05, high=0.2, rows=100)},
        ["Better"],
    ),
    "repetition": ({"repetition": share("repetition", 0.2, 0.1)}, ["Repetition", "Better"]),
    "as much as in the references": ({"repetition": share("repetition", 0.2, -0.05, 0.18)}, ["Better"]),
    "by chance": ({"repetition": share("repetition", 0.06, 0.0)}, ["Better"]),
    "empty": ({"empty": share("empty", 0.2, 0.1)}, ["EmptyAnswers", "Better"]),
    "not ending": ({"unfinished": share("unfinished", 0.2, 0.1)}, ["UnfinishedAnswers", "Better"]),
    "another language": ({"wrong_language": share("wrong_language", 0.2, 0.1)}, ["WrongLanguage", "Better"]),
    "no JSON": ({"invalid_json": share("invalid_json", 0.2, 0.1)}, ["InvalidJSON", "Better"]),
    "one answer": ({"same_answer": share("same_answer", 0.9, 0.7, 0.1)}, ["SameAnswer", "Better"]),
    "labels out of proportion": ({"label_shift": share("label_shift", 0.5, 0.4)}, ["SkewedLabels", "Better"]),
    "forgetting": ({"general_loss": loss(1.0, 0.2, 0.4, "general_loss")}, ["Forgetting", "Better"]),
    "a little forgetting": ({"general_loss": loss(1.0, 0.02, 0.1, "general_loss")}, ["Better"]),
    "memorised": ({"memorised": share("memorised", 0.3, 0.2)}, ["Memorised", "Better"]),
    "a canary": (
        {"canary_exposure": JudgedMeasure(name="canary_exposure", tuned=8.0, base=0.4, rows=1)},
        ["CanaryExposed", "Better"],
    ),
    "a canary that the base knows": (
        {"canary_exposure": JudgedMeasure(name="canary_exposure", tuned=8.0, base=7.0, rows=1)},
        ["Better"],
    ),
}


@pytest.mark.parametrize(("changes", "codes"), RULES.values(), ids=RULES)
def test_a_rule_needs_a_difference_that_matters_and_an_interval(
    changes: dict[str, JudgedMeasure], codes: list[str]
) -> None:
    found = findings_of(measures(**changes), "loss")
    assert [one.name for one in found] == codes
    assert all(one.rule in one.sentence for one in found)


def test_a_loss_that_is_not_a_number_is_harm_and_can_be_stored() -> None:
    broken = loss(2.0, float("nan"), float("nan"))
    found = findings_of(measures(loss=broken), "loss")
    assert [one.name for one in found] == ["NotBetter"]
    stored = Judgement(step=1, generation=1, settings="x", measures=(broken,), findings=tuple(found))
    read = Judgement.model_validate_json(stored.to_json())
    assert np.isnan(read.measures[0].tuned)
    assert np.isnan(read.findings[0].value)


def test_an_amplified_skew_of_the_evaluation_is_a_finding() -> None:
    skew = Amplification(
        group="women",
        label="nurse",
        rows=60,
        truth=0.5,
        predicted=0.9,
        truth_elsewhere=0.4,
        predicted_elsewhere=0.4,
        value=0.4,
        low=0.2,
        high=0.6,
        amplified=True,
    )
    [harm, better] = findings_of(measures(), "loss", EvaluationRecord(step=1, metrics={}, amplification=(skew,)))
    assert (harm.name, harm.value, better.name) == ("BiasAmplified", 0.4, "Better")
    assert "of 60 evaluation rows that mention women" in harm.sentence


# ---------------------------------------------------------------- from rows to measures


def answered(*texts: str, ended: bool = True) -> list[JudgedAnswer]:
    return [JudgedAnswer(text, tuple(hash(word) for word in text.split()), ended) for text in texts]


def test_answers_of_both_models_become_measures_of_the_same_rows() -> None:
    rights = ['{"a": 1}', '{"b": 2}', '{"c": 3}']
    shared = Shared(
        task=Task.CAUSAL_LM,
        references=rights,
        reference_tokens=[[1], [2], [3]],
        prompts=["x"] * 3,
        general_bytes=np.array([10.0, 10.0]),
    )
    tuned = Side(
        losses=np.array([1.0, 2.0, 3.0]),
        items=np.array([1.0, 1.0, 2.0]),
        answers=answered('{"a": 1}', "no", '{"c": 4}'),
        matched=np.array([1.0, 2.0, 3.0]),
        swapped=np.array([2.0, 3.0, 4.0]),
        general=np.array([12.0, 14.0]),
        trained=[True, True, False],
        held=[False, False],
        exposures=[6.0, 7.5],
    )
    base = Side(
        losses=np.array([4.0, 4.0, 8.0]),
        items=np.array([1.0, 1.0, 2.0]),
        answers=answered("a", "b", "c", ended=False),
        matched=np.array([4.0, 4.0, 4.0]),
        swapped=np.array([4.0, 4.0, 4.0]),
        general=np.array([10.0, 10.0]),
        trained=[False, False, False],
        exposures=[1.0, 2.0],
    )
    found = {one.name: one for one in measures_of(shared, tuned, base, lambda answers, references: None)}
    assert (found["loss"].tuned, found["loss"].base) == (1.5, 4.0)
    assert found["exact_match"].tuned == pytest.approx(1 / 3)
    assert (found["unfinished"].tuned, found["unfinished"].base) == (0.0, 1.0)
    assert (found["invalid_json"].tuned, found["invalid_json"].expected) == (pytest.approx(1 / 3), 0.0)
    assert found["win_share"].tuned > 0.5
    assert (found["prompt_gain"].tuned, found["prompt_gain"].base, found["prompt_gain"].low) == (1.0, 0.0, 1.0)
    assert (found["general_loss"].tuned, found["general_loss"].base) == (1.3, 1.0)
    assert found["memorised"].tuned == pytest.approx(2 / 3)
    assert (found["canary_exposure"].tuned, found["canary_exposure"].base) == (7.5, 2.0)
    assert "wrong_language" not in found


def test_an_answer_that_is_cut_is_compared_with_references_that_are_cut() -> None:
    rights = ['{"a": 1}', '{"b": 2}', '{"c": 3}', '{"d": 4}']
    shared = Shared(
        task=Task.CAUSAL_LM, references=rights, reference_tokens=[[1], [2] * 9, [3] * 10, [4] * 50], limit=10
    )
    answers = [*answered(rights[0], "no"), *answered("{", "{", ended=False)]
    side = Side(losses=np.ones(4), items=np.ones(4), answers=answers)
    found = {one.name: one for one in measures_of(shared, side, None, lambda answers, references: None)}
    assert (found["unfinished"].tuned, found["unfinished"].expected) == (0.5, 0.5)
    assert (found["invalid_json"].tuned, found["invalid_json"].rows) == (0.5, 2)
    assert (found["same_answer"].tuned, found["same_answer"].expected) == (0.5, 0.25)


def test_r2_and_correlation_are_those_of_the_usual_libraries_for_all_rows_and_for_redrawn_ones() -> None:
    draw = np.random.default_rng(1)
    truth = draw.normal(5.0, 2.0, 40)
    guess = truth + draw.normal(0.0, 1.0, 40)
    for own in (np.ones(40, int), *draw.multinomial(40, np.full(40, 1 / 40), 3)):
        rows, weights = np.repeat(np.arange(40), own), own[None].astype(float)
        assert r2_of(guess, truth)(weights)[0] == pytest.approx(r2_score(truth[rows], guess[rows]))
        expected = np.corrcoef(guess[rows], truth[rows])[0, 1]
        assert pearson_of(guess, truth)(weights)[0] == pytest.approx(expected)
    ones = np.ones((1, 40))
    assert pearson_of(np.full(40, 0.1), truth)(ones)[0] == 0.0  # the guess that is always the same
    assert np.isnan(r2_of(guess, np.full(40, 0.1))(ones)[0])


def test_predictions_of_labels_become_scores_and_shares() -> None:
    truth = np.array([0, 1, 2, 0, 1, 2])
    shared = Shared(task=Task.CLASSIFICATION, problem=ProblemType.SINGLE_LABEL, labels=("a", "b", "c"), truth=truth)
    tuned = Side(losses=np.ones(6), items=np.ones(6), predicted=np.array([0, 0, 0, 0, 0, 2]))
    base = Side(losses=np.ones(6), items=np.ones(6), predicted=np.zeros(6, int))
    found = {one.name: one for one in measures_of(shared, tuned, base, lambda answers, references: None)}
    assert (found["accuracy"].tuned, found["accuracy"].base) == (0.5, pytest.approx(1 / 3))
    assert found["macro_f1"].tuned == pytest.approx(f1_score(truth, tuned.predicted, average="macro"))
    assert (found["same_answer"].tuned, found["same_answer"].expected) == (pytest.approx(5 / 6), pytest.approx(1 / 3))
    assert found["label_shift"].tuned == pytest.approx(0.5)


@pytest.mark.parametrize("problem", [ProblemType.MULTI_LABEL, ProblemType.REGRESSION])
def test_several_labels_and_numbers_have_their_own_scores(problem: ProblemType) -> None:
    several = problem is ProblemType.MULTI_LABEL
    truth = np.array([[True, False], [True, True]]) if several else np.array([1.0, 3.0])
    guess = np.array([[True, False], [True, False]]) if several else np.array([2.0, 3.0])
    shared = Shared(task=Task.CLASSIFICATION, problem=problem, labels=("a", "b") if several else (), truth=truth)
    side = Side(losses=np.ones(2), items=np.ones(2), predicted=guess)
    found = {one.name: one.tuned for one in measures_of(shared, side, None, lambda answers, references: None)}
    expected = {"micro_f1": 0.8, "exact_match": 0.5} if several else {"mse": 0.5, "mae": 0.5, "r2": 0.5}
    assert expected.items() <= found.items()
