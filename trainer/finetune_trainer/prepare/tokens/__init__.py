"""Examples to token ids, once, for every rank of every run.

What a row becomes   encoder -> templates, render, spans (conversations); tokenizer, backend, words; encoded
All of it            tokenize (every core) -> rows (what travels), packing, writer (Arrow files); expiry
"""
