"""Small images: data, model, rewards, judges, and the comparison on them."""
