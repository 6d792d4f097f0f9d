"""The worker, one process per rank: a transformers.Trainer on DeepSpeed. Never talks to storage or the cluster."""
