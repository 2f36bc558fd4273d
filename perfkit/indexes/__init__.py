"""What an index is worth: advice, cost, what-if, lab."""
