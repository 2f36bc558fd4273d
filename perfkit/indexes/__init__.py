"""Index sets: plain SQL files, built with what each one costs."""
