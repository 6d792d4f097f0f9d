"""`finetune run`: jobs on this machine, without a cluster."""
