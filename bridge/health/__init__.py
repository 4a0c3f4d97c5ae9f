"""What the daemon says of itself to supervisors, load balancers and Prometheus."""
