"""What benchmarks/growth_exactness.py is made of: networks, the ways to grow them, and its page."""
