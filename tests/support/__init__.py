"""What the tests share: servers, tiny models, made-up data."""
