"""What the assistant says in a rendered conversation: by the template's marks, else by rendering the beginnings.

A template without `{% generation %}` marks still shows where an answer lies, if it renders the beginning of a
conversation as it renders it within the whole: the text that message i adds to messages[:i] is message i.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune_trainer.prepare.tokens.dialect import STANDARD, Dialect
from finetune_trainer.prepare.tokens.render import Message, Rendered, Renderer

# How templates of well-known models end a turn. Where the marks stop just before one of them, it belongs to the answer:
# a model that is never taught to end its turn talks until the limit.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 - DeepSeek writes it so
    "</s>",
)
NEXT_SPEAKER = ("<|user|>", "<|observation|>")  # GLM ends a turn by the name of who is next


class NotPrefixConsistentError(ValueError):
    """The template renders the beginning of a conversation in another way than within the whole."""


@dataclass(frozen=True)
class RenderedText:
    """A rendered conversation with the characters to learn; `ended` if its last turn has an end."""

    text: str
    spans: tuple[tuple[int, int], ...]
    ended: bool


@dataclass(frozen=True)
class Speaker:
    """A renderer that finds the assistant's words.

    Attributes:
        marked: whether the template marks them.
        everything: learn all of the text (lossOn: all), but messages of weight 0.
        eos: the tokenizer's end-of-text token.
        dialect: the forms that the template takes.
        ends: what ends a text for the model, each one token: marks of several tokens are not an end.
    """

    renderer: Renderer
    marked: bool
    everything: bool = False
    eos: str = ""
    dialect: Dialect = STANDARD
    ends: tuple[str, ...] = (*END_OF_TURN, *NEXT_SPEAKER)

    def rendered(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> Rendered:
        """Render a conversation, without looking for what is to be learnt.

        Raises:
            TemplateError: the template refuses it.
        """
        return self.renderer(self.dialect(messages), tools)

    def __call__(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> RenderedText:
        """Render a conversation and find what is to be learnt of it.

        Raises:
            TemplateError: the template refuses the conversation.
            NotPrefixConsistentError: it has no marks, and the beginnings differ.
        """
        messages = self.dialect(messages)
        whole = self.renderer(messages, tools)
        ends = (self.eos, *END_OF_TURN) if self.eos else END_OF_TURN
        known = (self.eos, *self.ends) if self.eos else self.ends
        ended = whole.text.rstrip().endswith(known) or messages[-1].get("role") != "assistant"
        answers = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
        silent = any(messages[index].get("weight", 1) == 0 for index in answers)
        if self.everything and not silent:
            return RenderedText(whole.text, ((0, len(whole.text)),), ended)
        if self.marked and (len(whole.spans) == len(answers) or not silent):
            spans = list(whole.spans)
        else:
            spans = [self._said(messages, tools, index, whole, ends) for index in answers]
        spans = [_with_end(whole.text, span, ends) for span in spans]
        if silent:
            learnt = [messages[index].get("weight", 1) != 0 for index in answers]
            if self.everything:
                quiet = [span for span, loud in zip(spans, learnt, strict=True) if not loud]
                return RenderedText(whole.text, _outside(quiet, len(whole.text)), ended)
            spans = [span for span, loud in zip(spans, learnt, strict=True) if loud]
        return RenderedText(whole.text, tuple(spans), ended)

    def _said(
        self, messages: Sequence[Message], tools: Sequence[Message], index: int, whole: Rendered, ends: Sequence[str]
    ) -> tuple[int, int]:
        before = self.renderer(messages[:index], tools, add_generation_prompt=True).text
        after = self.renderer(messages[: index + 1], tools).text
        for beginning in _without_last_end(after, ends):
            if beginning.startswith(before) and whole.text.startswith(beginning):
                return len(before), len(beginning)
        raise NotPrefixConsistentError(
            f"the chat template has no generation marks, and it renders the first {index + 1} messages in another "
            "way when more follow: the assistant's words cannot be found"
        )


def _without_last_end(text: str, ends: Sequence[str]) -> Iterator[str]:
    """Yield a text, and the text without its last mark: some templates (Phi) end only the last turn with one."""
    yield text
    shorter = text.rstrip()
    yield from (shorter.removesuffix(end) for end in ends if shorter.endswith(end))


def _with_end(text: str, span: tuple[int, int], ends: Sequence[str]) -> tuple[int, int]:
    start, end = span
    if not text[start:end].rstrip().endswith(tuple(ends)):
        for token in ends:
            if text.startswith(token, end):
                return start, end + len(token)
    return span


def _outside(spans: Sequence[tuple[int, int]], length: int) -> tuple[tuple[int, int], ...]:
    borders = [0, *(border for span in spans for border in span), length]
    pairs = zip(borders[::2], borders[1::2], strict=True)
    return tuple((start, end) for start, end in pairs if start < end)
