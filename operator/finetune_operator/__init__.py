"""The Kubernetes operator: turns a FineTuneJob into prepare, train and export Jobs and mirrors facts to its status."""
