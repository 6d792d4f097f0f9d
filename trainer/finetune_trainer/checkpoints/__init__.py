"""Checkpoints: identity, files on a node, files in storage, and which of them to use."""
