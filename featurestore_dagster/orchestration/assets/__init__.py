"""Asset factories, one module per group of the graph: raw, indicators and macro (views), online, and dbt's models."""
