"""What keeps proxies off the user's event loop: the I/O thread, flights, per-loop clients, fork."""
