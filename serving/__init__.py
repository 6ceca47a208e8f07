"""Clips over HTTP: a queue that loses nothing, clips in turn, a stream while they are made."""
