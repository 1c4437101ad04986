"""The experiments that are run with trained models."""
