"""Molecules: a diffusion on a chemical latent with a decoder to SMILES, rewards that are programs, and judges."""
