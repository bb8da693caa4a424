"""Reading: how fresh values are, and the values themselves, now or as of any time. Computing and storing them does not belong here."""
