"""The simulations behind docs/method.md."""
