"""Quality for a given time of training, beside torchcfm; see ``__main__``."""
