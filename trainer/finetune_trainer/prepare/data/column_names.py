"""What columns are called: the parts of an example, and what other data sets call them."""

# never used without the user's word, only proposed
LIKELY = {
    "text": ("body", "content", "sentence", "review", "comment", "message", "tweet", "document", "utterance", "input"),
    "label": (
        "labels",
        "kto_tag",
        "is_desirable",
        "preference",
        "feedback",
        "rating",
        "thumb",
        "category",
        "class",
        "target",
        "intent",
        "sentiment",
        "topic",
        "tag",
        "output",
        "y",
    ),
    "prompt": ("question", "query", "instruction", "input", "source", "context", "user", "request"),
    "completion": ("answer", "response", "output", "reply", "target", "assistant", "summary", "result"),
    "anchor": ("query", "question", "sentence1", "sentence_1", "text1", "text_a", "title", "claim", "premise"),
    "positive": (
        "pos",
        "positive_passage",
        "passage",
        "document",
        "answer",
        "sentence2",
        "text2",
        "text_b",
        "evidence",
    ),
    "messages": ("conversations", "conversation", "dialogue", "dialog", "chat", "turns", "message_list"),
    "instruction": ("question", "query", "prompt", "request", "task"),
    "input": ("context", "passage", "article", "document"),
    "output": ("answer", "response", "completion", "reply", "target"),
    "chosen": ("chosen_response", "response_chosen", "preferred", "accepted", "better", "winner", "positive"),
    "rejected": ("rejected_response", "response_rejected", "reject", "dispreferred", "worse", "loser", "negative"),
    "reasoning": ("thought", "thoughts", "cot", "chain_of_thought", "complex_cot", "thinking", "reasoning_content"),
    "tokens": ("words", "text_tokens", "sentence", "token", "word"),
    "tags": ("ner_tags", "labels", "ner", "pos_tags", "tag", "label", "pos", "upos"),
    "entities": ("spans", "annotations", "ents", "label", "labels"),
    "system": ("system_prompt", "system_message", "system_instruction", "sys_prompt"),
}
REASONED = frozenset({"reasoning", *LIKELY["reasoning"]})  # what leads to the answer beside it
# columns beside a question that change what its answer means
CONTEXT = ("context", "passage", "input", "article", "document")
# names of the label of two texts, in addition to those of one text
PAIR_LABELS = ("gold_label", "score", "similarity", "similarity_score", "relevance", "answer", "is_duplicate")
SPLIT = ("split", "fold", "subset", "partition", "set", "dataset_split")
HELD_OUT = frozenset({"test", "valid", "validation", "val", "eval", "evaluation", "dev", "heldout", "holdout"})
TRAINED = frozenset({"train", "training", "trn"})
TESTED = frozenset({"test", "heldout", "holdout"})  # not for choosing a checkpoint, where there is something else
PARTS = frozenset({"text", "label", "messages", "conversations", "prompt", "completion", "tools", "system", "history"})
KNOWN = PARTS | {name for names in LIKELY.values() for name in names}
