"""Iterative tilting for diffusion fine-tuning: the library behind the companion book of arXiv 2512.03234."""
