"""The lab's mirror: a signed apt repository of stand-in packages, Ollama's releases and a model registry."""
