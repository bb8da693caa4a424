"""What is measured, and the process that answers Prometheus. Reading values belongs to `serving` and `stores`."""
