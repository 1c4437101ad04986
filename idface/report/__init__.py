"""What a run leaves behind, as a page."""
