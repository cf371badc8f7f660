"""The decision agent: learns from recorded episodes."""
