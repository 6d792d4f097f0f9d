"""The worker, one process per rank: a transformers.Trainer on DeepSpeed. It never accesses storage or the cluster."""
