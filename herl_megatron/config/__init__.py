"""Configuration: schema, loading, cross-field rules."""
