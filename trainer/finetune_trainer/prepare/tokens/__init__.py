"""Examples to token ids, once, for every rank of every run.

What a row becomes   encoder -> templates, render, spans (conversations); tokenizer, backend, words
All of it            tokenize -> portion_work (in every process), token_rows (what travels), packing, split_writer
                     (Arrow files), keeping (what an interrupted stage goes on from); expiry
"""
