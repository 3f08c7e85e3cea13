"""What the tests share: nothing but that modules named _*.py are helpers, not to be searched for tests and doctests."""

collect_ignore_glob = ["_*.py"]
