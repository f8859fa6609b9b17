"""Models: the pipelines that the node runs."""
