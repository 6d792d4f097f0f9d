"""The node agent, PID 1 of every training pod: gang, worker processes, recovery, upload and commit. Imports no torch."""
