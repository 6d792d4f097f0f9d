"""Facts about models and their files, without torch."""
