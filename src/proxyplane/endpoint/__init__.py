"""The endpoint: a daemon of a site that holds objects, and asks those of other sites.

Read `service` for what it does, `storage` for where objects are, `transport` for how endpoints
reach each other, and `daemon` for how it runs.
"""
