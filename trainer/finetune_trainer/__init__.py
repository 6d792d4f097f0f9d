"""Everything that runs in the trainer image: the prepare and export stages, the node agent, the workers, the CLI."""
