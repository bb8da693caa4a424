"""Where data lives: postgres (truth), redis (online copy), embedded (both servers from wheels). Business rules do not belong here."""
