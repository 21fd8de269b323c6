"""What a run found, as results.json and as one self-contained web page."""
