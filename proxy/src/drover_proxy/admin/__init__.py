"""What an operator asks the proxy: metrics, health, state."""
