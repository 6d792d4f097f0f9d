"""The contract between user, operator and trainer: API models, messages, names and errors. Imports pydantic only."""
