"""A client of the OCI distribution API, and the layouts in which a registry gets an artifact."""
