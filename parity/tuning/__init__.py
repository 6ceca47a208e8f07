"""Which dials pay on this device and model: time a clip against what is lost."""
