"""What can be proved against a private training from outside: lower bounds beside the accountant's upper bound."""

from privacy.auditing.bounds import at_least, epsilon_of, largest_rate, most_true_positives, mu_of, smallest_rate
from privacy.auditing.inversion import inverted, peak_signal_to_noise
from privacy.auditing.membership import likelihood_scores, true_positives
from privacy.auditing.one_run import OneRun, largest_refuted, one_run, p_value
from privacy.auditing.releases import correlation_bound, largest_correlation, noise_scale, off_lattice
from privacy.auditing.samples import poisson_p_value
from privacy.auditing.two_worlds import CONFIDENCE, Separation, separation

__all__ = [
    "CONFIDENCE",
    "OneRun",
    "Separation",
    "at_least",
    "correlation_bound",
    "epsilon_of",
    "inverted",
    "largest_correlation",
    "largest_rate",
    "largest_refuted",
    "likelihood_scores",
    "most_true_positives",
    "mu_of",
    "noise_scale",
    "off_lattice",
    "one_run",
    "p_value",
    "peak_signal_to_noise",
    "poisson_p_value",
    "separation",
    "smallest_rate",
    "true_positives",
]
