"""What prepare found of tokens whose embeddings the base model never trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class UntrainedTokens:
    """Tokens that the data writes, and whose embeddings were never trained.

    Attributes:
        ids: token -> id.
        modules: names of the input embedding and, if it is another matrix, of the output embedding.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    modules: tuple[str, ...] = ("embed_tokens",)
