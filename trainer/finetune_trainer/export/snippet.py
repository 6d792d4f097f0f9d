"""Python code that loads an artifact with plain transformers and peft and uses it once; a test runs it."""

import json
from collections.abc import Sequence

from finetune_api.messages import MethodType, ProblemType
from finetune_api.plan import Plan, PlannedEmbedding
from finetune_api.tasks import spec_of
from finetune_trainer.export.layout import Base
from finetune_trainer.model.families import family_of

HERE = 'artifact = "."'  # to be replaced outside of the artifact's folder


def snippet(plan: Plan, base: Base, *, chat: bool = False, merged: bool = False) -> str:
    """Return the code, for a card and for the terminal.

    Args:
        chat: whether the model was trained on conversations, with the chat template of its tokenizer.
        merged: whether the artifact is a model that the adapter was merged into.
    """
    adapter = plan.method is not MethodType.FULL and not merged
    auto = spec_of(plan.task).auto_class
    lines = ["import json", "from pathlib import Path", ""] if adapter and plan.dataset.labels else []
    lines += ["import torch"] if plan.embedding else []
    lines += ["from peft import PeftModel"] if adapter else []
    ended = adapter and spec_of(plan.task).writes and plan.dataset.ends
    configured = ", GenerationConfig" if ended else ""
    lines += [f"from transformers import {auto}, AutoTokenizer{configured}", "", HERE]
    lines.append("tokenizer = AutoTokenizer.from_pretrained(artifact)")
    lines += _adapted(plan, base, auto) if adapter else [f"model = {auto}.from_pretrained(artifact).eval()"]
    use = _vector_use(plan.embedding) if plan.embedding else _text_use(plan)
    return "\n".join([*lines, "", *(_chat_use() if chat and spec_of(plan.task).continues else use)]) + "\n"


def gguf_use(plan: Plan, files: Sequence[str]) -> str:
    """Return the section of a card that loads a GGUF file: llama.cpp's own commands."""
    command = "llama-server --embeddings" if plan.embedding else "llama-cli" if _continues(plan) else "llama-server"
    head = "With [llama.cpp](https://github.com/ggml-org/llama.cpp):"
    served = "`llama-server` serves it with the API of OpenAI. There are no manifests for this form."
    return f"{head}\n\n```sh\n{command} -m {files[0]}\n```\n\n{served}\n"


def _continues(plan: Plan) -> bool:
    return bool(spec_of(plan.task).continues)


def sentence_snippet() -> str:
    """Return code that does the same with sentence-transformers."""
    lines = [
        "from sentence_transformers import SentenceTransformer",
        "",
        HERE,
        "model = SentenceTransformer(artifact)",
        'queries = model.encode(["Some text."], prompt_name="query")',
        'documents = model.encode(["Another text."], prompt_name="document")',
        "print(model.similarity(queries, documents))",
    ]
    return "\n".join(lines) + "\n"


def _adapted(plan: Plan, base: Base, auto: str) -> list[str]:
    lines, source = [], json.dumps(base.location)
    if base.revision:
        source += f', revision="{base.revision}"'
    if plan.dataset.labels:
        lines.append('labels = json.loads(Path(artifact, "labels.json").read_text("utf-8"))')
        source += ", num_labels=len(labels), id2label=dict(enumerate(labels))"
    elif spec_of(plan.task).labelled:
        source += ", num_labels=1"
    if plan.dataset.problem_type not in (None, ProblemType.SINGLE_LABEL):
        source += f', problem_type="{plan.dataset.problem_type}"'
    lines.append(f"base = {auto}.from_pretrained({source})")
    if spec_of(plan.task).labelled and family_of(plan.model.model_type).ends_at_padding:
        lines.append("base.config.pad_token_id = tokenizer.pad_token_id  # a row ends where that begins")
    if plan.new_tokens:
        lines.append("rows = max(len(tokenizer), base.get_input_embeddings().num_embeddings)")
        lines.append("base.resize_token_embeddings(rows, mean_resizing=False)  # the adapter holds the new rows")
    if spec_of(plan.task).writes and plan.dataset.ends:
        lines.append("base.generation_config = GenerationConfig.from_pretrained(artifact)  # where an answer ends")
    return [*lines, "model = PeftModel.from_pretrained(base, artifact).eval()"]


def _chat_use() -> list[str]:
    """Return code that asks a question through the chat template, as in training, and prints only the answer."""
    return [
        'messages = [{"role": "user", "content": "Some text."}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
        "output = model.generate(**inputs, max_new_tokens=40)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _vector_use(planned: PlannedEmbedding) -> list[str]:
    """Return code that compares two texts by their vectors."""
    query, document = (json.dumps(text, ensure_ascii=False) for text in _two_texts(planned))
    vectors = {
        "mean": ["vectors = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)"],
        "cls": ["vectors = hidden[:, 0]"],
        "last": ["vectors = hidden[torch.arange(len(texts)), mask.sum(1) - 1]"],
    }[planned.pooling]
    return [
        'tokenizer.padding_side = "right"',
        f"texts = [{query}, {document}]",
        f"limit = {planned.max_seq_length}",
        'inputs = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")',
        "with torch.no_grad():",
        "    hidden = model(**inputs).last_hidden_state",
        'mask = inputs["attention_mask"]',
        *vectors,
        "vectors = torch.nn.functional.normalize(vectors, dim=-1)",
        "print(float(vectors[0] @ vectors[1]))",
    ]


def _two_texts(planned: PlannedEmbedding) -> tuple[str, str]:
    return f"{planned.query_prompt}Some text.", f"{planned.document_prompt}Another text."


def _text_use(plan: Plan) -> list[str]:
    """Return code that gives the model a text and prints the task's result."""
    text = 'f"Some {tokenizer.mask_token}."' if spec_of(plan.task).hides_tokens else '"Some text."'
    if plan.dataset.pair_separator == "":
        text = '"A text.", "A second text."'
    elif plan.dataset.pair_separator:
        text = json.dumps(f"A text.{plan.dataset.pair_separator}A second text.")
    lines = [f'inputs = tokenizer({text}, truncation=True, max_length={plan.max_length}, return_tensors="pt")']
    if spec_of(plan.task).hides_tokens:
        lines.append('hidden = inputs["input_ids"][0] == tokenizer.mask_token_id')
        lines.append("print(tokenizer.decode(model(**inputs).logits[0, hidden].argmax(-1)))")
    elif spec_of(plan.task).labels_words:
        lines.append('tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])')
        lines.append(
            "labels = [model.config.id2label[index] for index in model(**inputs).logits[0].argmax(-1).tolist()]"
        )
        lines.append("print(list(zip(tokens, labels)))  # the label of a word is that of its first token")
    elif not spec_of(plan.task).labelled:
        lines.append("output = model.generate(**inputs, max_new_tokens=40)")
        lines.append("print(tokenizer.decode(output[0], skip_special_tokens=True))")
    elif plan.dataset.problem_type is ProblemType.REGRESSION:
        lines.append("print(model(**inputs).logits.item())")
    elif plan.dataset.problem_type is ProblemType.MULTI_LABEL:
        lines.append("scores = model(**inputs).logits.sigmoid()[0]")
        lines.append("print([model.config.id2label[index] for index, score in enumerate(scores) if score >= 0.5])")
    else:
        lines.append("print(model.config.id2label[int(model(**inputs).logits.argmax())])")
    return lines
