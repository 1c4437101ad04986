"""What is done with a trained generator's latent space: search, banks, inversion, directions."""
