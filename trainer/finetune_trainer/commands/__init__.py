"""What `finetune` does, a module for each kind of command; `main.py` holds the command line."""
