"""When a run evaluates and saves, and what it tells: events to the agent, files for people."""
