"""What `mapbridge bench` measures, one module per measurement."""
