"""Pages for people: of a run, of a clip dataset, of a sweep; and everything that they draw."""
