"""Jobs and leases: the only doors through which work is claimed and effects are written."""
