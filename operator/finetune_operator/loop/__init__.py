"""The work that never ends: watches, the queue of jobs, reconciles, and polls of the gangs.

handlers    watches, by Kopf; news says what an event means
queue       the keys of jobs to look at
controller  observe, decide, act
progress    polls the leaders of running gangs; pace limits the writes of figures
metrics     the operator's own Prometheus metrics
"""
