"""What the programs of the stages share: how they start, end and talk to each other."""
