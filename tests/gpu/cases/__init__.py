"""The cases of the GPU check, in their order of worth: a machine may be taken away at any moment."""

from tests.gpu.case import Case
from tests.gpu.cases import end_to_end, exactness, limits, memory, optimizers, speed


def chosen(only: str, *, tiny: bool) -> list[Case]:
    """Return the cases whose name contains one of some texts.

    Args:
        only: the texts, a comma apart; empty = all cases.
        tiny: for the rehearsal on a CPU.
    """
    layouts = memory.cases(tiny=tiny)
    cases = [
        end_to_end.LORA,
        speed.BESIDE_PEERS,
        *exactness.CASES,
        *end_to_end.OTHERS,
        limits.OUT_OF_MEMORY,
        *layouts[:6],
        *speed.CASES,
        *optimizers.CASES,
        *layouts[6:],
    ]
    return [case for case in cases if any(text in case.name for text in only.split(","))]
