"""The process that decodes: a confined child that owns nothing and opens nothing by name."""
