"""Plain networks: blocks, encoders, generators, discriminators."""
