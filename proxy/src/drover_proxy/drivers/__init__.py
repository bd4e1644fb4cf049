"""What touches the world: NVML, Ollama's control API, systemd, sockets, the log."""
