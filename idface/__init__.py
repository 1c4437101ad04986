"""Identity-preserving face synthesis."""
