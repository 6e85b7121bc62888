"""Fine-tuned models: as files, in the registry, in use."""
