"""Who is made next, and making it. Knows nothing of HTTP."""
