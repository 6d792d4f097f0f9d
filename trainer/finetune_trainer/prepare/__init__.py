"""The prepare stage (CPU): read and check the data, tokenise once, mirror the model once, plan."""
