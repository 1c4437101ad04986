"""One LightningModule a paper, over `base.py`."""
