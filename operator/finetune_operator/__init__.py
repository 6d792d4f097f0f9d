"""The Kubernetes operator: it turns a FineTuneJob into prepare, train and export Jobs, and reports on its status.

objects  Kubernetes objects as values (pure)
policy   what a reconcile decides, and the status that follows (pure)
cluster  the API server and the leaders of gangs
loop     watches, queue, reconciles and polls
"""
