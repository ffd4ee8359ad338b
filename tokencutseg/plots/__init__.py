"""Every figure of the study: a function from data to a matplotlib `Figure`, in one family (see `style`)."""
