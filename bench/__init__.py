"""Speed claims, each a script that anyone can run. The last line of each is one JSON document."""
