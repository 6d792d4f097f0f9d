"""What an evaluation measures: scores by task, generated answers, and what follows from them."""
