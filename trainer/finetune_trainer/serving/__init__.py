"""Serving: what vLLM takes, the manifests that start it, and the test of an artifact on a real server."""
