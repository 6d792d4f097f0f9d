"""Runs on this machine, without a cluster: `finetune run`."""
