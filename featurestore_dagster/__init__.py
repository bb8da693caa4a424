"""A feature platform for market data: point-in-time true, audited before publication, fresh by the exchange calendar.

The package root holds no code: importing it must cost nothing. Start at `model` (vocabulary), `features` (the declarations) and
`definitions` (the Dagster code location).
"""
