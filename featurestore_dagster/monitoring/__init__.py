"""What is measured, the process that answers Prometheus, and alerts. Reading values belongs to `serving` and `stores`."""
