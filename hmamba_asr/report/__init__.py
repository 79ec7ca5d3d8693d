"""The HTML page about finished runs, its figures and claims, and the table of results."""
