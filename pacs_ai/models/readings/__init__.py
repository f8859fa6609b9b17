"""The readings that the node performs: what it prepares of the images, and what it makes of a model's output."""
