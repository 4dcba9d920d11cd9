"""Where models come from: folders, GGUF files, the hub, a wheel."""
