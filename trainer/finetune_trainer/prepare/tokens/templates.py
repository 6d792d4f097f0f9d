"""Which chat template a data set is tokenised with: the tokenizer's own, a named one, or a file.

Completion-only loss needs to know which text is the assistant's. TRL ships, for the templates of well-known models, a
second version with `{% generation %}` marks; a template is recognised by its exact text, as TRL does. TRL's functions
for it import torch, so its files are read instead.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from finetune_api.errors import Problem, SpecError
from finetune_trainer.prepare.tokens import render
from finetune_trainer.storage import NotFoundError, open_object

FIELD = "spec.dataset.chatTemplate"
SUFFIX = ".jinja"
TRAINING = "_training"
# Share of equal lines. The two versions of Qwen3's template have 0.87, those of two models 0.8 at most unless the
# models are of one series.
NEAR = 0.82
NONE = "none"  # what a job names to have pairs trained as bare text

# ChatML as Qwen and many others write it, the whole answer with its end within the marks.
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{{- message['content'] + '<|im_end|>\\n' }}
{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class ChatTemplate:
    """A template in its two versions.

    Attributes:
        training: rows are rendered with it.
        inference: goes with the trained model: the training version may keep what a stock template drops.
        marked: whether `training` marks what the assistant says.
    """

    training: str
    inference: str

    @property
    def marked(self) -> bool:
        return "generation" in self.training and "endgeneration" in self.training


def given_template(wanted: str | None, environ: Mapping[str, str]) -> str | None:
    """Return the text that `spec.dataset.chatTemplate` stands for: a name, a path, or a URI; None without one.

    `none` = no template, not even the model's.

    Raises:
        SpecError: the name or file does not exist, or it is not a template.
        StorageError: the store refuses or is unreachable.
    """
    if wanted in (None, NONE):
        return None
    text = _read(wanted, environ) if wanted.endswith(SUFFIX) else _named(wanted)
    try:
        render.check_template(text)
    except render.TemplateError as error:
        raise SpecError(invalid_template(f"{wanted} is not a Jinja template: {error}")) from error
    return text


def invalid_template(message: str, field: str = FIELD) -> Problem:
    """Return the problem with a template that does not work."""
    cure = f"correct it, or name another one in {FIELD}"
    return Problem(code="InvalidChatTemplate", field=field, message=message, cure=cure)


def names() -> tuple[str, ...]:
    """Return templates that a job can name."""
    return ("chatml", NONE, *sorted(name for name in _shipped() if not name.endswith(TRAINING)))


def _named(name: str) -> str:
    if name == "chatml":
        return CHATML
    known = names()
    if name in known:
        return _shipped()[name]
    near = difflib.get_close_matches(name, known, 1)
    raise SpecError(
        Problem(
            code="UnknownTemplate",
            field=FIELD,
            message=f'there is no chat template named "{name}"',
            cure=f"did you mean {near[0]}?" if near else f"name one of {', '.join(known)}, or a {SUFFIX} file",
        )
    )


def _read(path: str, environ: Mapping[str, str]) -> str:
    uri = path if "://" in path else f"file://{path}"
    store, key = open_object(uri, environ)
    try:
        return store.get(key).decode("utf-8")
    except NotFoundError as error:
        message = f"there is no file {uri}"
        raise SpecError(Problem(code="FileNotFound", field=FIELD, message=message, cure="correct the path")) from error
    except UnicodeDecodeError as error:
        raise SpecError(invalid_template(f"{uri} is not text: {error}")) from error


@lru_cache(maxsize=1)
def _shipped() -> Mapping[str, str]:
    """Return every template in TRL's package, by name."""
    folder = resources.files("trl") / "chat_templates"
    files = [file for file in folder.iterdir() if file.name.endswith(SUFFIX)]
    return {file.name.removesuffix(SUFFIX): file.read_text("utf-8") for file in files}


def chat_template(text: str) -> ChatTemplate:
    """Return a template with the training version that is known for it, else with itself."""
    if "endgeneration" in text:
        return ChatTemplate(text, text)
    shipped = _shipped()
    for name, stock in shipped.items():
        if stock == text and name + TRAINING in shipped:
            return ChatTemplate(shipped[name + TRAINING], text)
    return ChatTemplate(text, text)


def to_name_instead(text: str) -> str:
    """Return what a job can name in place of a template that hides the answers: the marked one most like it, or chatml.

    Models keep the version of the template that was current when they were published (Qwen3 had two).
    """
    lines = text.splitlines()
    marked = {name: stock for name, stock in _shipped().items() if name + TRAINING in _shipped()}
    shares = {
        name: difflib.SequenceMatcher(None, stock.splitlines(), lines, autojunk=False).ratio()
        for name, stock in marked.items()
    }
    nearest = max(shares, key=shares.__getitem__)
    if shares[nearest] < NEAR:
        return "chatml"
    return f"{nearest} (another version of this one: {shares[nearest]:.0%} of the lines are equal)"


def with_bos(template: ChatTemplate, bos: str) -> ChatTemplate:
    """Return a template that writes BOS first, unless it writes BOS already."""
    if any(written in template.inference for written in ("bos_token", bos)):
        return template
    first = "{{- bos_token }}"
    return ChatTemplate(first + template.training, first + template.inference)


def has_template(files: Mapping[str, Path]) -> bool:
    """Return whether a model's files, by name, hold a chat template; transformers is not asked."""
    if files.keys() & {"chat_template.jinja", "chat_template.json"}:
        return True
    try:
        config = json.loads(files["tokenizer_config.json"].read_text("utf-8"))
    except (KeyError, OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))
