"""The export stage (CPU): a committed checkpoint becomes an adapter or a model that vanilla libraries load."""
