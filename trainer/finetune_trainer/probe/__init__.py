"""The probe: a tiny model of an architecture goes through everything that a run does, before a run is paid for.

`question` holds what prepare asks and is told. `__main__` is the program that answers, in a process of its own.
"""
