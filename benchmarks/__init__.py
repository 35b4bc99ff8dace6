"""What a call costs more with the pacer around it, and what waiting costs: ``python -m benchmarks``."""
