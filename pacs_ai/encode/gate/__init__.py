"""What every result has to pass before it enters the outbox: one question in each part."""
