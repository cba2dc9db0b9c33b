"""Many short trainings give the best settings, on Ray Tune."""
