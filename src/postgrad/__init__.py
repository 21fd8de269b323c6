"""Take a trained image classifier further than its training did, and prove each gain against a fair control."""
