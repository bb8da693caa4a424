"""Pure Polars expressions, each declared with its meaning by `model.indicator.indicator`; views do not belong here.

One file per family. An expression is built without `.over`: the caller evaluates it over one entity's rows, sorted by
event time.
"""
