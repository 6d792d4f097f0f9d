"""The schedule of evaluations and saves, and the reports of a run: events for the agent, files for people."""
