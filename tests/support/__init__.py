"""Tools of the tests: servers, and proxies that misbehave."""
