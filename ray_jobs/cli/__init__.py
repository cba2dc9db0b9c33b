"""The command line of all jobs: settings, checks, the connection to Ray, and console output."""
