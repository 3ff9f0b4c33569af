"""What both daemons share about the network."""
