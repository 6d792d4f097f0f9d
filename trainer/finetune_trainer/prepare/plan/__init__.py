"""The plan: every value of a run chosen by a rule where the user chose none. Pure, but for shape.

What is planned for   shape (the model, counted on the meta device) -> architecture; machine -> gpus
What is chosen        planner -> layout (the fastest that fits) -> memory, speed, reasons; batch, schedule, rates,
                      saving, engine
What is said          log (every choice with its reason), estimate, summary, terminal
"""
