"""What `finetune` does, a module for each kind of command; `cli.py` holds the command line."""
