"""Where a dense model comes from: folders, GGUF files, the hub, a wheel; and the families of models."""
