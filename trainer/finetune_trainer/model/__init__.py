"""What is known of models and their files, without torch."""
