"""Examples. This file makes the folder a package of ours: opacus installs one of the same name."""
