"""What iterative tilting is compared with, one file per paper.

A method with a loop of its own is a generator like :func:`itlib.tilting.iterative_tilting`: it takes a base model, a reward,
a schedule and a configuration, and yields after every iteration; :mod:`~itlib.baselines.adjoint_matching` is the template.
One that changes what a tilt regresses on is an ``update`` of Algorithm 2, as in :mod:`~itlib.baselines.reward_weighted`. Any
model can be the base, the exact one of a mixture included. What a method draws, evaluates and differentiates is counted
(:mod:`itlib.baselines.accounting`), so that budgets can be compared.
"""
