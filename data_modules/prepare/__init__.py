"""From raw photos to aligned ones. The only part of `data_modules` that knows of face recognition."""
