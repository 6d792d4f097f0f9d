"""The node agent, PID 1 of every training pod: gang, workers, recovery, upload and commit. Imports no torch."""
