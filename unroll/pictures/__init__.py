"""Pictures that a command leaves: a dataset on one page, an evaluation."""
