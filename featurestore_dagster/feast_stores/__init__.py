"""Plug-ins for Feast: our rules of reading and writing under an unmodified Feast, chosen in its `feature_store.yaml`.

The only package beside `projections.feast_objects` that imports Feast. Nothing of ours imports it.
"""
