"""Losses: one function an equation, tensors in, scalar out."""
