"""Many short trainings on Ray Tune, which find the best settings of a long one."""
