"""Simulated GPUs: NVML's library, nvidia-smi and the kernel's side of a host, over one state file."""
