"""What a run tells its user: the table in the terminal, the figures, the page and a sweep's summary."""
