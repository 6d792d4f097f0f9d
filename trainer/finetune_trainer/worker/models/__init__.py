"""The model of a run. `load` is the entry; each other module makes one kind of change to the model."""
