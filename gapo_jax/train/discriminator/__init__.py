"""The discriminator's batches, steps and updates."""
