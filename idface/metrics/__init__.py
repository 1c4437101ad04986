"""Metrics that all modules share, as torchmetrics classes."""
