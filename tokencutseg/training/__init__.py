"""Training: the three Lightning modules and `fit`. The only room that imports Lightning."""
