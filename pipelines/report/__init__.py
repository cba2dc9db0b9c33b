"""Pages people look at: run, dataset, sweep; all drawing is here."""
