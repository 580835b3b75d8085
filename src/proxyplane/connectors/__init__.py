"""The connectors that come with the package, one medium a room."""
