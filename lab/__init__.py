"""Real hosts on one machine: systemd under systemd-nspawn, simulated GPUs and Ollama, a mirror of its own."""
