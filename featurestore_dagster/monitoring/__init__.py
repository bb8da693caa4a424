"""What watches the platform: alerts and their delivery. Each module's docstring says on which layer it lives."""
