"""The world outside: the API server and the leaders of gangs.

kube     the API server on plain dicts; recent keeps what many reconciles read
observe  reads a FineTuneJob and its children
act      writes the status, creates and deletes children, posts Events
asking   asks the leader of a gang for its progress
lease    elects the replica that works
"""
