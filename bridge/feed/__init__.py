"""What readers of the log see: typed messages, JSON, filters, history, schemas."""
