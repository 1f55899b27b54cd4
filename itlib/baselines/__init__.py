"""What iterative tilting is compared with, one file per method, all from the same template.

A method is a generator like :func:`itlib.tilting.iterative_tilting`: it takes a base model, a reward, a schedule and
a configuration, and yields after every iteration. Any model can be the base, the exact one of a mixture included. What
a method draws, evaluates and differentiates is counted (:mod:`itlib.baselines.accounting`), so that budgets can be compared.
"""
