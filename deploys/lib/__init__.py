"""What the deploys of all layers share: variables, facts, operations and the six stages."""
