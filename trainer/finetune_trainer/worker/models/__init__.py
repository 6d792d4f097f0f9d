"""The model as the plan wants it: `load` is the entry, one file for each thing that may be done to a model."""
