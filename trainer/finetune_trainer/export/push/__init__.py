"""Copies of artifacts in other places: Hugging Face hubs, OCI registries, other storages. `pushing` is the entry.

An artifact is committed to the storage of the job first. A push that fails loses nothing.
"""
