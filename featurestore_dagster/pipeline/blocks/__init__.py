"""Blocks: for each grain the function that brings values of its features to feature rows. Putting blocks together belongs to `compute`."""
