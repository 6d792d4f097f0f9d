"""The evidence in an artifact: what it was made from, the software, a draft of its documentation, and the signature."""
