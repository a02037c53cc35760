"""A Flower app: clients send what they train, and nothing else."""
