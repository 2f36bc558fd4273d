"""The decision to ship: gate items beside the run's rules, claims, answers of people, and a seal."""
