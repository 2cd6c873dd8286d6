"""What a site would refuse, and the launcher of several processes."""
