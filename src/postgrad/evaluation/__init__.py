"""What a classifier is worth and what it costs: metrics, calibration, cost, and the statistics of a comparison."""
