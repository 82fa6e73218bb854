"""One script for each engine that bench.peers measures; each runs in an environment of its own (`python -m bench.peer.NAME --help`)."""
