"""Route: quiet series become jobs."""
