"""Shared parts of the tests: servers, tiny models, generated data."""
