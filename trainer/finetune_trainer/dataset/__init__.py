"""The files of a prepared data set."""
