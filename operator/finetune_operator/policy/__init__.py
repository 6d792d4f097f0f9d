"""What a reconcile decides. Pure: no I/O, no clock (`now` is an argument), no randomness.

world       the values between observe, decide and act
accepted    the spec that counts; allowed: what an admin lets jobs ask for
decide      the next step of a job, and the actions that lead there; steps lists the steps
obstacles   why a stage makes no progress; failures: why it failed; release: pods on dead nodes
lifecycle   the status of a job, built from what was observed; answers, display and accounting build its parts
conditions  questions about the conditions of the last status; reasons: every reason and what it means
events      the Kubernetes Events that follow from a change of status
"""
