"""The record of each task, which prepare, plan, worker and export read. It imports no torch.

A new task is a member of `messages.Task`, a record here, and the module of `finetune_trainer.worker.tasks` that the
record names. All other code reads the record and does not compare tasks.
"""

from dataclasses import dataclass
from enum import StrEnum

from finetune_api.messages import Task
from finetune_api.preference_losses import ACCURACIES, KL, REWARDS


class Supervision(StrEnum):
    """What a row teaches; determines its Arrow column in addition to `input_ids` (see `messages.DatasetFacts`)."""

    LABEL = "a label of the text"  # `label`
    CONTINUATION = "the tokens that follow"  # `trained_runs`
    SEQUENCE = "another sequence"  # `labels`
    HIDDEN = "hidden tokens"  # no column: the worker masks tokens anew in each pass
    PREFERENCE = "which completion is better"  # `trained_runs`, `seq_lengths`; `label` of a single completion
    CLOSENESS = "which of its texts belong together"  # `seq_lengths`
    WORD_LABELS = "a label of each word"  # `labels`


@dataclass(frozen=True)
class Default:
    """A default of the plan, and its source."""

    value: str | float
    source: str


@dataclass(frozen=True)
class TaskSpec:
    """One task.

    Attributes:
        worker: module of the worker; its `TASK` is a `worker.tasks.worker_task.WorkerTask`.
        supervision: what a row teaches.
        shapes: names of sets of columns in `prepare.data.shapes`; the first set that fits a row is used.
        proposals: columns to suggest for rows that fit no shape; the set that uses most of a row comes first.
        example: an example of `spec.dataset.columns` in an error.
        auto_class: class of transformers that loads the model.
        peft_type: task type of PEFT; None where PEFT has none.
        purpose: ends the sentence "All weights after step 10, for ...".
        pipeline_tag: pipeline tag of the model card; None where transformers has no such pipeline.
        scheduler, warmup: schedule of the learning rate, and share of the steps in which it rises.
        ceiling: maximum length of a row in tokens if neither the job nor the model has a lower limit.
        metrics: metrics of an evaluation, in addition to the scores of labels and of answers.
        best: default for the metric that chooses the best checkpoint; None = a score of the labels, else the loss.
        smooths: whether the loss is a cross entropy, whose targets may be smoothed.
        answers: whether the model generates text that can be compared with the text of the row.
        packs: whether several rows may share a sequence.
        unpadded: whether batches have no padding, for families whose attention keeps documents apart.
    """

    task: Task
    worker: str
    supervision: Supervision
    shapes: tuple[str, ...]
    proposals: tuple[tuple[str, ...], ...]
    example: str
    auto_class: str
    peft_type: str | None
    purpose: str
    pipeline_tag: str | None
    scheduler: Default
    warmup: Default
    ceiling: int
    metrics: tuple[str, ...]
    best: Default | None = None
    smooths: bool = False
    answers: bool = False
    packs: bool = False
    unpadded: bool = False

    @property
    def labelled(self) -> bool:
        """Whether a row teaches a label."""
        return self.supervision is Supervision.LABEL

    @property
    def labels_words(self) -> bool:
        """Whether a row teaches a label for each of its words."""
        return self.supervision is Supervision.WORD_LABELS

    @property
    def named(self) -> bool:
        """Whether rows teach labels, which have names."""
        return self.labelled or self.labels_words

    @property
    def continues(self) -> bool:
        """Whether a row teaches the continuation of its own tokens."""
        return self.supervision in (Supervision.CONTINUATION, Supervision.PREFERENCE)

    @property
    def prefers(self) -> bool:
        """Whether a row teaches which completion is better."""
        return self.supervision is Supervision.PREFERENCE

    @property
    def sequences(self) -> int:
        """Largest number of sequences in a row that is not packed, each of up to the maximum length."""
        return 2 if self.prefers else 1

    @property
    def writes(self) -> bool:
        """Whether the model writes text, so that its artifact needs the tokens that end an answer."""
        return self.answers or self.prefers

    @property
    def has_target(self) -> bool:
        """Whether a row teaches a separate sequence, which a decoder writes."""
        return self.supervision is Supervision.SEQUENCE

    @property
    def hides_tokens(self) -> bool:
        """Whether a row teaches its own masked tokens."""
        return self.supervision is Supervision.HIDDEN

    @property
    def compares(self) -> bool:
        """Whether a row has several texts, whose embeddings are compared."""
        return self.supervision is Supervision.CLOSENESS

    @property
    def predicts_tokens(self) -> bool:
        """Whether the model has an output layer as wide as its vocabulary."""
        return not self.named and not self.compares


WORKERS = "finetune_trainer.worker.tasks"
ALPACA = ("instruction", "input", "output")
PAIR = ("prompt", "completion")
CHOICE = ("prompt", "chosen", "rejected")
JUDGED = ("prompt", "completion", "label")
PAIR_SHAPES = ("prompt and response", "question and answer", "input and output")
TEXTS = ("anchor", "positive")
TEXT_SHAPES = (
    "anchor and positive",
    "query and positive",
    "query and pos",
    "query and passage, for embeddings",
    "query and document, for embeddings",
    "query and answer",
    "question and positive",
    "question and answer, for embeddings",
    "premise and hypothesis, for embeddings",
    "sentence1 and sentence2, for embeddings",
)
TEXT_PAIRS = {  # two texts of one row, by the names of well-known data sets; the name of the shape -> their columns
    f"{first} and {second}": (first, second)
    for first, second in (
        ("premise", "hypothesis"),  # SNLI, MultiNLI, XNLI
        ("sentence1", "sentence2"),  # MRPC, STS-B, RTE, PAWS
        ("sentence_1", "sentence_2"),
        ("sentence_A", "sentence_B"),  # SICK
        ("question1", "question2"),  # QQP
        ("question", "sentence"),  # QNLI
        ("question", "passage"),  # BoolQ
        ("query", "passage"),  # MS MARCO
        ("query", "document"),
        ("text1", "text2"),
        ("text_a", "text_b"),
    )
}
TAGGED_WORDS = {  # words and their tags, by the names of well-known data sets; the first that a row has is used
    f"{words} and {tags}": (words, tags)
    for words in ("tokens", "words")
    for tags in ("tags", "ner_tags", "ner_labels", "ner", "labels", "label", "pos_tags", "chunk_tags")
}
TAGGED_SPANS = {  # a text and spans of its characters
    f"spans in {spans}": ("text", spans) for spans in ("entities", "spans", "label", "labels")
}
_ROBERTA = "RoBERTa paper, arXiv 1907.11692"
_QLORA = "QLoRA's training script"

TASKS: dict[Task, TaskSpec] = {
    spec.task: spec
    for spec in (
        TaskSpec(
            task=Task.CAUSAL_LM,
            worker=f"{WORKERS}.causal_lm",
            supervision=Supervision.CONTINUATION,
            shapes=("messages", "conversations", "xlam", "prompt and completion", "alpaca", *PAIR_SHAPES, "text"),
            proposals=(ALPACA, PAIR, ("messages",), ("text",)),
            example="{prompt: query, completion: reply}",
            auto_class="AutoModelForCausalLM",
            peft_type="CAUSAL_LM",
            purpose="for text generation",
            pipeline_tag="text-generation",
            scheduler=Default("cosine", "cosine decay, as in the Llama 2 paper's fine-tuning"),
            warmup=Default(0.03, _QLORA),
            ceiling=2048,
            metrics=("loss", "perplexity"),
            smooths=True,
            answers=True,
            packs=True,
            unpadded=True,
        ),
        TaskSpec(
            task=Task.CLASSIFICATION,
            worker=f"{WORKERS}.classification",
            supervision=Supervision.LABEL,
            shapes=("two texts and label", "text and label", *TEXT_PAIRS),
            proposals=(("text", "label"),),
            example="{text: body, label: category}",
            auto_class="AutoModelForSequenceClassification",
            peft_type="SEQ_CLS",
            purpose="for classification",
            pipeline_tag="text-classification",
            scheduler=Default("linear", "linear decay, as in the BERT paper"),
            warmup=Default(0.06, _ROBERTA),
            ceiling=512,
            metrics=("loss",),
            smooths=True,
        ),
        TaskSpec(
            task=Task.SEQ2SEQ,
            worker=f"{WORKERS}.seq2seq",
            supervision=Supervision.SEQUENCE,
            shapes=("prompt and completion", "alpaca", *PAIR_SHAPES, "messages", "conversations"),
            proposals=(ALPACA, PAIR),
            example="{prompt: query, completion: reply}",
            auto_class="AutoModelForSeq2SeqLM",
            peft_type="SEQ_2_SEQ_LM",
            purpose="for text from text",
            pipeline_tag=None,  # transformers 5 has no pipeline for encoder-decoders
            scheduler=Default("linear", "linear decay, as transformers' own examples of translation and summaries"),
            warmup=Default(0.03, _QLORA),
            ceiling=512,
            metrics=("loss", "perplexity"),
            smooths=True,
            answers=True,
        ),
        TaskSpec(
            task=Task.MASKED_LM,
            worker=f"{WORKERS}.masked_lm",
            supervision=Supervision.HIDDEN,
            shapes=("text",),
            proposals=(("text",),),
            example="{text: body}",
            auto_class="AutoModelForMaskedLM",
            peft_type=None,
            purpose="for text with hidden tokens: an encoder pre-trained further",
            pipeline_tag="fill-mask",
            scheduler=Default("linear", "linear decay, as in the BERT and RoBERTa papers"),
            warmup=Default(0.06, _ROBERTA),
            ceiling=512,
            metrics=("loss", "perplexity", "accuracy"),
            smooths=True,
        ),
        TaskSpec(
            task=Task.TOKEN_CLASSIFICATION,
            worker=f"{WORKERS}.token_classification",
            supervision=Supervision.WORD_LABELS,
            shapes=(*TAGGED_WORDS, *TAGGED_SPANS, "lines of words"),
            proposals=(("tokens", "tags"), ("text", "entities")),
            example="{tokens: words, tags: ner_tags}",
            auto_class="AutoModelForTokenClassification",
            peft_type="TOKEN_CLS",
            purpose="for token classification",
            pipeline_tag="token-classification",
            scheduler=Default("linear", "linear decay, as in the BERT paper"),
            warmup=Default(0.06, _ROBERTA),
            ceiling=512,
            metrics=("loss", "f1", "precision", "recall", "accuracy"),
            best=Default("f1", "whole entities, as in the shared task CoNLL-2003"),
            smooths=True,
        ),
        TaskSpec(
            task=Task.PREFERENCE,
            worker=f"{WORKERS}.preference",
            supervision=Supervision.PREFERENCE,
            shapes=(
                "prompt, chosen and rejected",
                "question, chosen and rejected",
                "instruction, chosen and rejected",
                "conversations, chosen and rejected",
                "messages, chosen and rejected",
                "chosen and rejected",
                "prompt, completion and label",
                "messages and label",
            ),
            proposals=(CHOICE, JUDGED, ("messages", "label")),
            example="{prompt: question, chosen: better, rejected: worse}",
            auto_class="AutoModelForCausalLM",
            peft_type="CAUSAL_LM",
            purpose="for text generation, tuned on preferences",
            pipeline_tag="text-generation",
            scheduler=Default("linear", "linear decay, as in the Tulu 3 paper (arXiv 2411.15124) and in TRL"),
            warmup=Default(0.1, "Zephyr and Tulu 3 papers, arXiv 2310.16944 and 2411.15124"),
            ceiling=2048,
            metrics=("loss", *REWARDS, ACCURACIES, KL),
            unpadded=True,
        ),
        TaskSpec(
            task=Task.EMBEDDING,
            worker=f"{WORKERS}.embedding",
            supervision=Supervision.CLOSENESS,
            shapes=TEXT_SHAPES,
            proposals=(TEXTS,),
            example="{anchor: query, positive: passage}",
            auto_class="AutoModel",
            peft_type="FEATURE_EXTRACTION",
            purpose="for embeddings of texts",
            pipeline_tag="sentence-similarity",
            scheduler=Default("linear", "linear decay, the default of sentence-transformers"),
            warmup=Default(0.1, "sentence-transformers' training examples"),
            ceiling=512,
            metrics=("loss", "recall_at_1", "recall_at_10", "mrr_at_10", "ndcg_at_10", "margin"),
            best=Default("ndcg_at_10", "the rank of the positive among all texts of the evaluation rows"),
        ),
    )
}


def spec_of(task: Task) -> TaskSpec:
    """Return the record of a task."""
    return TASKS[task]
