"""Who may come in: keys, their scopes and the models they may use."""
