"""The HTTP server: Feast's protocol and ours over one client. What is answered is decided by the client, not here."""
