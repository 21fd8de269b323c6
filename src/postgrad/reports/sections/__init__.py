"""The parts of the report: each module turns what a run left into what one part of the page shows."""
