"""What a path means: routes, model names, request bodies, error bodies, and when an answer is whole."""
