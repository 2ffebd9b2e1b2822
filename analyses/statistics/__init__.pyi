from .censored import censored_difference as censored_difference
from .censored import censored_slope as censored_slope
from .change_point import fit_change as fit_change
from .intervals import over_runs as over_runs
from .intervals import t_interval as t_interval
