"""The index lab: what each index of a set brings, what it costs, and the fewest that do as well as all."""
