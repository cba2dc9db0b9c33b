"""A registered encoder as an HTTP service on Ray Serve: an upload or a URI in, an embedding out."""
