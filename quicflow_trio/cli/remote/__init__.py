"""A running server by its ops URL: what the commands that look at one share."""
