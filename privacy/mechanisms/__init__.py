"""Private releases: plans that couple sampling, clipping, noise and their cost, and the noise itself."""
