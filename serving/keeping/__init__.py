"""Jobs and files that outlive the process. Knows nothing of HTTP or of how a clip is made."""
