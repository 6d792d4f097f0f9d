"""`finetune reproduce`: the training of an artifact, run again from its evidence, and the comparison of the weights."""
