SELECT sum(n) FROM effort, generate_series(1, steps) n
