"""An adapter merged into the weights of its base model, one block at a time: memory does not grow with the model."""
