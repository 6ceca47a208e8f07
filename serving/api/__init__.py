"""HTTP in the shape of OpenAI's Videos API. Knows nothing of how a clip is made or where a job lies."""
