"""The plan: every value of a run, chosen by a rule where the user chose none.

Pure, but for shape, built, here and measured_pace.

What is decided before the data is read   setting -> machine, gpus, lora, given_config; here (this machine)
What is planned for                       shape (the model, counted on the meta device) -> architecture
What is chosen                            planner -> rank_layout, ways (the fastest that fits) -> rank_load, memory,
                                          speed, memory_reasons; draft, batch, schedule, rates, evaluation, engine
What is predicted                         estimate; measured_pace (a CPU, timed), checkpoint_cost
What is shown                             choice_log (every choice with its reason), notes, plan_summary, table
"""
