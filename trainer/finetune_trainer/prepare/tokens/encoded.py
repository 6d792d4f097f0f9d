"""One example as a model sees it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORED = -100  # torch's cross entropy skips this label


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example.

    Attributes:
        ids: int32 [tokens], after the cut.
        trained: bool [tokens], which of them carry loss (the first is never predicted, whatever it says); None where
            the target is not a token (classification) or stands in `target`.
        target: int32 [tokens] of an encoder-decoder's output; None elsewhere.
        full_length: tokens before the cut; more than `len(ids)` if it was cut.
    """

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_] | None = None
    target: npt.NDArray[np.int32] | None = None
    full_length: int = 0
