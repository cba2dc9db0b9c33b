"""`xkd submit`: runs a job on a cluster by Ray's job server, after checks from there."""
