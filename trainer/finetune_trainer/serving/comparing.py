"""The answers of a server beside those of transformers. Pure.

Greedy answers go different ways after the first other token, so that what follows it says nothing. The end of an answer
counts as a token.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from finetune_trainer.serving.serve_records import ExpectedAnswers, GreedyAnswer, ServeSettings, ServeTestResult

END = -1  # stands for the end of an answer among its tokens


@dataclass(frozen=True)
class Compared:
    """One answer of both.

    Attributes:
        equal: tokens before the first other one.
        of: tokens of transformers.
    """

    equal: int
    of: int


def answer_of(tokens: Sequence[int], stopped: bool, ends: Collection[int]) -> GreedyAnswer:
    """Return an answer of a server.

    Args:
        tokens: all that it wrote, with or without the token at which it stopped.
        stopped: whether it says that the answer ended by itself.
        ends: tokens that end an answer.
    """
    place = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    last = place == len(tokens) - 1
    if place < len(tokens) and not (stopped and last):
        return GreedyAnswer(tokens=tuple(tokens[:place]), ended=False, passed=tokens[place])
    return GreedyAnswer(tokens=tuple(tokens[:place]), ended=stopped)


def agreement_of(expected: GreedyAnswer, served: GreedyAnswer) -> Compared:
    """Return how far two answers agree."""
    right, seen = _whole(expected), _whole(served)
    pairs = zip(right, seen, strict=False)
    equal = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(right), len(seen)))
    return Compared(equal, len(right))


def server_result(
    expected: ExpectedAnswers,
    served: Sequence[GreedyAnswer],
    settings: ServeSettings,
    server: str,
    turn: Sequence[int] = (),
) -> ServeTestResult:
    """Return what the answers of a server show.

    Args:
        server: its name and version.
        turn: token ids of a user's turn in the server's chat template; empty if it tells none.
    """
    pairs = [agreement_of(one, other) for one, other in zip(expected.answers, served, strict=True)]
    total = sum(pair.of for pair in pairs)
    share = sum(pair.equal for pair in pairs) / total if total else 1.0
    passed = [one.passed for one in served if one.passed is not None]
    ended = sum(one.ended for one in expected.answers)
    seen = (
        f"{server} writes {share:.1%} of {total:,} tokens as transformers, and {settings.agreement:.1%} are asked for"
    )
    ends = f"{ended} of {len(pairs)} answers end within {settings.tokens} tokens"
    if passed:
        missed = (
            f"{server} goes on after token {passed[0]}, which ends an answer, in {len(passed)} of {len(pairs)} answers"
        )
        return _result(settings, False, "EndsMissed", f"{missed}; {seen}", share)
    if share < settings.agreement:
        return _result(settings, False, "OtherAnswers", f"{seen}; {_first_other(expected.answers, served)}", share)
    if turn and expected.turn and tuple(turn) != expected.turn:
        other = f"{server} writes a user's turn with another chat template, as {len(turn)} tokens"
        return _result(settings, False, "OtherAnswers", f"{other} in place of {len(expected.turn)}; {seen}", share)
    return _result(settings, True, "SameAnswers", f"{seen}; {ends}", share)


def _result(settings: ServeSettings, served: bool, reason: str, message: str, share: float) -> ServeTestResult:
    return ServeTestResult.model_validate(
        {"settings": settings.digest, "served": served, "reason": reason, "message": message, "share": share}
    )


def _first_other(expected: Sequence[GreedyAnswer], served: Sequence[GreedyAnswer]) -> str:
    """Return where an answer goes another way, for people who look for the cause."""
    for number, (one, other) in enumerate(zip(expected, served, strict=True), 1):
        right, seen = _whole(one), _whole(other)
        if (at := agreement_of(one, other).equal) < len(right):
            return f"answer {number} differs at token {at + 1}: {_named(right, at)}, the server has {_named(seen, at)}"
    return ""


def _named(tokens: Sequence[int], at: int) -> str:
    if at >= len(tokens):
        return "nothing"
    return "the end" if tokens[at] == END else f"token {tokens[at]}"


def _whole(answer: GreedyAnswer) -> list[int]:
    return [*answer.tokens, *([END] if answer.ended else [])]
