"""From a run on disk to one HTML file and the data beside it."""
