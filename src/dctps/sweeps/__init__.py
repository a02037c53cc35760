"""Many runs: what they are, how they are done, and what is left of them.

The package imports nothing, so that a new worker can turn signals off before it imports torch.
"""
