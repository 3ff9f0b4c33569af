"""An audit of private training on this machine: canaries, what releases tell of them, and what was claimed."""
