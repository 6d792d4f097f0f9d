"""Kubernetes objects as values. Pure: no I/O, no clock.

kinds      where the API server keeps each kind of object
identity   the identity of a FineTuneJob, and the job with the spec that counts
facts      from a Job or pod, as the API server returned it, to the facts that policy needs
machines   the GPUs of nodes; node_affinity says which nodes a training pod may get
resources  from a FineTuneJob to its Jobs and its Secret; pods and inputs build the parts of their pods
"""
