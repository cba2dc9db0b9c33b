"""The command line that all jobs share: settings, checks, Ray, and what people see."""
