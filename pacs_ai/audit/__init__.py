"""The audit trail (PS3.15 A.5): events of what the node did with whose images, told to a file and to a repository."""
