"""The judgement of an exported model: it and its base model answer the same held-out rows in one run."""
