"""The figures of a split: lengths, truncation, padding, labels."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune_trainer.prepare.observed.observation import NO_TOKENS_TRAINED
from finetune_trainer.prepare.quality.context import Context, ObservedSplit, shortened
from finetune_trainer.prepare.quality.report import (
    Bin,
    LabelCount,
    LanguageRows,
    Lengths,
    Numbers,
    Padding,
    Shown,
    SplitQuality,
)

Ints = npt.NDArray[np.int64]

BINS = 32  # of the histogram, about
PADDED_ROWS = 20_000  # as many are put into batches to measure padding
WINDOW = 50  # batches that are sorted by length together (transformers' LengthGroupedSampler)
SHOWN_ROWS = 6
SHOWN_CHARACTERS = 280


def split_figures(
    split: ObservedSplit, context: Context, edges: Sequence[int], languages: tuple[LanguageRows, ...] = ()
) -> SplitQuality:
    """Return all figures of a split with at least one row.

    Args:
        edges: where the bins of the histogram begin.
        languages: rows by language.
    """
    table = split.table
    full = np.sort(table["full"])
    tokens = table["tokens"]
    return SplitQuality(
        rows=split.rows,
        distinct_rows=split.distinct,
        tokens=int(tokens.sum(dtype=np.int64)),
        trained_share=trained_share(split),
        truncated_rows=int(np.count_nonzero(table["full"] > table["tokens"])),
        length_for_99_percent=at(np.sort(split.verdicts["longest"]) if len(split.verdicts) else full, 99),
        lengths=Lengths(
            p1=at(full, 1),
            p5=at(full, 5),
            p25=at(full, 25),
            p50=at(full, 50),
            p75=at(full, 75),
            p90=at(full, 90),
            p95=at(full, 95),
            p99=at(full, 99),
            longest=int(full[-1]),
        ),
        histogram=length_bins(full, edges),
        padding=padding(np.minimum(tokens, context.max_length), context.micro_batch, context.max_length),
        labels=labels(split),
        numbers=number_figures(split),
        languages=languages,
        sampled=len(split.kept),
        sample_complete=not split.sampled(),
        shown=tuple(
            Shown(
                place=row.place,
                tokens=row.tokens,
                given=shortened(row.given, SHOWN_CHARACTERS),
                learnt=row.label or shortened(row.learnt, SHOWN_CHARACTERS),
            )
            for row in split.kept[:SHOWN_ROWS]
        ),
    )


def at(ordered: Ints, percent: int) -> int:
    """Return the least value that at least `percent` % of the values do not exceed."""
    return int(ordered[max(0, -(-len(ordered) * percent // 100) - 1)])


def trained_share(split: ObservedSplit) -> float | None:
    """Return the share of predicted tokens that carry loss; None where the target is no token of the row."""
    trained = split.table["trained"]
    if not len(trained) or (trained == NO_TOKENS_TRAINED).any():
        return None
    predicted = int(np.maximum(split.table["tokens"] - 1, 0).sum())
    return round(int(trained.sum()) / predicted, 6) if predicted else 0.0


def labels(split: ObservedSplit) -> tuple[LabelCount, ...]:
    """Return labels by their rows, the largest first; a row of several labels counts for each."""
    own = split.table["label"]
    counts = np.bincount(own[own >= 0], minlength=len(split.seen.labels))
    rows: Counter[str] = Counter()
    for target, count in zip(split.seen.labels, counts.tolist(), strict=True):
        rows.update(dict.fromkeys(split.seen.members.get(target, (target,)), count))
    ordered = sorted(rows.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(LabelCount(name=name, rows=count) for name, count in ordered)


def number_figures(split: ObservedSplit) -> Numbers | None:
    """Return how the numbers to be predicted are spread."""
    own = np.sort(split.seen.numbers().astype(np.float64))
    if not len(own):
        return None
    low, median, high = (own[max(0, -(-len(own) * percent // 100) - 1)] for percent in (5, 50, 95))
    return Numbers(
        least=float(own[0]),
        p5=float(low),
        p50=float(median),
        p95=float(high),
        greatest=float(own[-1]),
        mean=round(float(own.mean()), 6),
        deviation=round(float(own.std()), 6),
    )


def bin_edges(*splits: ObservedSplit) -> list[int]:
    """Round edges for the histograms of all splits: up to what 99 % of the rows do not exceed."""
    highest = max(at(np.sort(split.table["full"]), 99) for split in splits)
    width = next(
        step * 10**power for power in range(9) for step in (1, 2, 4, 5, 8) if step * 10**power * BINS >= highest + 1
    )
    return list(range(0, highest + 1, width))


def length_bins(lengths: Ints, edges: Sequence[int]) -> tuple[Bin, ...]:
    """Return how many rows have which length."""
    counts = np.histogram(lengths, [*edges, max(int(lengths.max()), edges[-1]) + 1])[0].tolist()
    ends = [*edges[1:], None]
    return tuple(Bin(start=a, end=b, rows=rows) for a, b, rows in zip(edges, ends, counts, strict=True))


def padding(tokens: Ints, micro_batch: int, pack_length: int) -> Padding:
    """Return what batches of these rows waste, in the order of a seeded shuffle."""
    rows = np.random.default_rng(0).permutation(tokens)[:PADDED_ROWS]
    grouped = np.concatenate([np.sort(part) for part in np.array_split(rows, _parts(len(rows), WINDOW * micro_batch))])
    return Padding(
        micro_batch=micro_batch,
        shuffled=_waste(rows, micro_batch),
        grouped=_waste(grouped, micro_batch),
        packed=_packed_waste(rows, pack_length),
        pack_length=pack_length,
    )


def _parts(rows: int, window: int) -> list[int]:
    return list(range(window, rows, window))


def _waste(rows: Ints, micro_batch: int) -> float:
    starts = np.arange(0, len(rows), micro_batch)
    positions = np.maximum.reduceat(rows, starts) * np.diff([*starts, len(rows)])
    return _share(rows, int(positions.sum()))


def _packed_waste(rows: Ints, pack_length: int) -> float:
    """Return the waste of best-fit decreasing: each row, longest first, goes into the fullest sequence with room."""
    room: list[int] = []
    packs = 0
    for length in np.sort(np.minimum(rows, pack_length))[::-1].tolist():
        index = bisect_left(room, length)
        if index < len(room):
            left = room.pop(index) - length
        else:
            packs += 1
            left = pack_length - length
        if left:
            insort(room, left)
    return _share(np.minimum(rows, pack_length), packs * pack_length)


def _share(rows: Ints, positions: int) -> float:
    return round(1 - int(rows.sum()) / positions, 4) if positions else 0.0
