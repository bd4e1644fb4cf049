"""The memory a model takes, predicted before it is loaded."""
