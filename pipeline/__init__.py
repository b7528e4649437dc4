"""Pipeline: the only folder that imports both readers and models."""
