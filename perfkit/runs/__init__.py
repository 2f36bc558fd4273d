"""Interleaved rounds of arms, into a bundle."""
