"""Tags of words: what their prefixes say, and the entities that a sequence of tags holds. Pure.

The entities are those of conlleval, the script of the shared task CoNLL-2000, as seqeval 1.2.2 computes them by
default: `B-` begins an entity, and so does `I-` after another type or outside. BILOU's `L-` and `U-`, and BMES's `M-`,
are read as the BIOES tags `E-`, `S-` and `I-`.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

OUTSIDE = "O"
_MARKED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
_SAME = {"L": "E", "U": "S", "M": "I"}
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Tag:
    """The parts of a tag: B, I, E, S or O, and the type of the entity."""

    mark: str
    kind: str


@dataclass(frozen=True, slots=True)
class Entity:
    """Words `start` to before `stop`, of one type."""

    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class TagScheme:
    """How a set of tags is read.

    Attributes:
        outside: the tag of words in no entity; None where every word has a type of its own, such as parts of speech.
        marked: whether tags have prefixes. Without them, neighbours of one type are one entity.
    """

    outside: str | None
    marked: bool

    @classmethod
    def of(cls, tags: Collection[str]) -> "TagScheme":
        """Return the scheme of a set of tags. Tags that are all numbers are those of a list whose first is `O`."""
        marked = any(_MARKED.fullmatch(tag) for tag in tags)
        numbers = bool(tags) and all(map(_NUMBER.fullmatch, tags))
        return cls("0" if numbers else OUTSIDE if marked or OUTSIDE in tags else None, marked)

    def parts(self, tag: str) -> Tag:
        """Return the parts of a tag."""
        if tag == self.outside:
            return Tag("O", "")
        if self.outside is None:
            return Tag("S", tag)
        if self.marked and (found := _MARKED.fullmatch(tag)):
            return Tag(_SAME.get(found[1], found[1]), found[2])
        return Tag("I", tag)

    def kinds(self, tags: Collection[str]) -> tuple[str, ...]:
        """Return the types of the entities of a set of tags, sorted."""
        return tuple(sorted({self.parts(tag).kind for tag in tags} - {""}))

    def entities(self, tags: Sequence[str]) -> list[Entity]:
        """Return the entities of the words of a row, in their order."""
        found: list[Entity] = []
        before, start = Tag("O", ""), 0
        for place, tag in enumerate([*map(self.parts, tags), Tag("O", "")]):
            if before.mark != "O" and _ends(before, tag):
                found.append(Entity(before.kind, start, place))
            if tag.mark != "O" and _begins(before, tag):
                start = place
            before = tag
        return found

    def misplaced(self, tags: Sequence[str]) -> str | None:
        """Return the first tag that continues no entity of its type, with the one before it; None if there is none."""
        before = OUTSIDE
        for tag in tags if self.marked else ():
            mark, earlier = self.parts(tag), self.parts(before)
            if mark.mark in "IE" and (earlier.mark not in "BI" or earlier.kind != mark.kind):
                return f"{tag} after {before}"
            before = tag
        return None


def _ends(before: Tag, tag: Tag) -> bool:
    return before.mark in "ES" or tag.mark in "BSO" or before.kind != tag.kind


def _begins(before: Tag, tag: Tag) -> bool:
    return tag.mark in "BS" or before.mark in "ESO" or before.kind != tag.kind
