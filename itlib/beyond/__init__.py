"""What the book adds to the paper: estimators, step sizes, preconditioning, tilts learned on chains."""
