"""The statistics held against simulated runs whose truth is known, and the page that shows it: docs/method.md."""
