"""Hugging Face, GGUF and PEFT files in and out."""
